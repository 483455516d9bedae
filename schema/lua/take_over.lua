-- Makes a writer the one whose publishes are taken, and returns the position to publish from.
-- KEYS: progress. ARGV: writer, checkpoint, log_end, next_event_at, heard_at, most events to publish again.
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'hash' and kind ~= 'none' then redis.call('DEL', KEYS[1]) end
local known = redis.call('HMGET', KEYS[1], 'position', 'floor')
local position, floor = known[1], known[2]
if not position or tonumber(ARGV[2]) - tonumber(position) > tonumber(ARGV[6]) then
    position = ARGV[2]
    if not floor or tonumber(floor) < tonumber(position) then floor = position end
end
redis.call('HSET', KEYS[1], 'writer', ARGV[1], 'position', position, 'floor', floor, 'log_end', ARGV[3],
    'next_event_at', ARGV[4], 'heard_at', ARGV[5], 'recovering', '1')
return position
