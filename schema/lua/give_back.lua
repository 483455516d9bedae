-- Gives a token back; a bucket never holds more than its burst. KEYS: bucket. ARGV: burst, window in microseconds.
local filled = redis.call('HGET', KEYS[1], 'filled')
if filled then
    local full = tonumber(ARGV[1]) * tonumber(ARGV[2])
    redis.call('HSET', KEYS[1], 'filled', string.format('%.0f', math.min(full, tonumber(filled) + tonumber(ARGV[2]))))
end
return 0
