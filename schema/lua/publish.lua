-- Takes a batch over if progress holds this writer and stands just before it.
-- KEYS: progress; a key and a lease for each count; a key and a lease for each status.
-- ARGV: writer, from, to, log_end, next_event_at, heard_at, recovering, number of counts, what to tell who listens;
--       count and version for each count; field, value and version for each status.
-- A version that cannot be read is older than any.
local function version(text) return tonumber(text or '') or -2 end
local held = redis.call('HMGET', KEYS[1], 'writer', 'position')
if held[1] ~= ARGV[1] or held[2] ~= ARGV[2] then return 0 end
-- A server without memory refuses this first write, and then nothing was changed.
redis.call('HSET', KEYS[1], 'writer', ARGV[1])
local counts, argument = tonumber(ARGV[8]), 10
local last_count = 1 + 2 * counts
for key = 2, last_count, 2 do
    local known = redis.pcall('HGET', KEYS[key], 'v')
    if type(known) == 'table' then
        redis.call('DEL', KEYS[key])
    elseif known and version(known) < tonumber(ARGV[argument + 1]) then
        redis.call('HSET', KEYS[key], 'count', ARGV[argument], 'v', ARGV[argument + 1])
    end
    argument = argument + 2
end
for key = last_count + 1, #KEYS, 2 do
    local known = redis.pcall('HGET', KEYS[key], ARGV[argument])
    if type(known) == 'table' then
        redis.call('DEL', KEYS[key])
    elseif known and version(string.match(known, '%-?%d+$')) < tonumber(ARGV[argument + 2]) then
        redis.call('HSET', KEYS[key], ARGV[argument], ARGV[argument + 1])
    end
    argument = argument + 3
end
-- Nobody fills any more what was read before. Lua can unpack a few thousand at once.
local leases = {}
for key = 3, #KEYS, 2 do
    leases[#leases + 1] = KEYS[key]
    if #leases == 1000 or key == #KEYS then
        redis.call('DEL', unpack(leases))
        leases = {}
    end
end
redis.call('HSET', KEYS[1], 'position', ARGV[3], 'log_end', ARGV[4], 'next_event_at', ARGV[5], 'heard_at', ARGV[6],
    'recovering', ARGV[7])
-- A hint: whoever may not tell it has published all the same.
if ARGV[9] ~= '' then redis.pcall('PUBLISH', 'like:changes', ARGV[9]) end
return 1
