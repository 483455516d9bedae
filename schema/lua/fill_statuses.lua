-- Installs a user's statuses if the lease is still held, each where what is there is missing or not newer.
-- KEYS: the user's statuses, lease. ARGV: token, life in milliseconds, most fields;
--       field, value and version for each status.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
local known = redis.pcall('HLEN', KEYS[1])
if type(known) == 'table' or known + (#ARGV - 3) / 3 > tonumber(ARGV[3]) then
    redis.call('DEL', KEYS[1])
    known = 0
end
for argument = 4, #ARGV, 3 do
    local there = redis.call('HGET', KEYS[1], ARGV[argument])
    if not there or (tonumber(string.match(there, '%-?%d+$') or '') or -2) <= tonumber(ARGV[argument + 2]) then
        redis.call('HSET', KEYS[1], ARGV[argument], ARGV[argument + 1])
    end
end
-- The life counts from the making, whatever is added later.
if known == 0 then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
redis.call('DEL', KEYS[2])
return 1
