-- Forgets a request in flight and gives its tokens back; an answer stays, a bucket never holds more than its burst.
-- KEYS: request, if there is one; buckets. ARGV: 1 if there is a request; burst and window in microseconds of each bucket.
local first = 1 + tonumber(ARGV[1])
if first == 2 then
    local known = redis.call('GET', KEYS[1])
    if known and string.sub(known, -1) == '-' then redis.call('DEL', KEYS[1]) end
end
for key = first, #KEYS do
    local filled = tonumber(redis.call('HGET', KEYS[key], 'filled') or '')
    if filled then
        local argument = 2 + 2 * (key - first)
        local window = tonumber(ARGV[argument + 1])
        local full = tonumber(ARGV[argument]) * window
        redis.call('HSET', KEYS[key], 'filled', string.format('%.0f', math.min(full, filled + window)))
    end
end
return 0
