-- Installs a count if the lease is still held and what is there is missing or not newer.
-- KEYS: count, lease. ARGV: token, count, version, life in milliseconds.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
local known = redis.pcall('HGET', KEYS[1], 'v')
if type(known) == 'table' then
    redis.call('DEL', KEYS[1])
elseif known and (tonumber(known) or -2) > tonumber(ARGV[3]) then
    redis.call('DEL', KEYS[2])
    return 0
end
redis.call('HSET', KEYS[1], 'count', ARGV[2], 'v', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('DEL', KEYS[2])
return 1
