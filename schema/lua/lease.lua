-- Gives the right to fill to one reader, and returns progress's position; nil while another holds it or progress is
-- missing. KEYS: progress, lease. ARGV: token, life in milliseconds.
local position = redis.call('HGET', KEYS[1], 'position')
if position and redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return position end
return false
