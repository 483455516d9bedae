-- Forgets a request in flight and gives its tokens back; an answer stays, a bucket never holds more than its burst.
-- KEYS: request, if there is one; buckets. ARGV: 1 if there is a request; burst and window in microseconds of each bucket.
local known = redis.call('MGET', unpack(KEYS))
local first = 1 + tonumber(ARGV[1])
if first == 2 and known[1] and string.sub(known[1], -1) == '-' then redis.call('DEL', KEYS[1]) end
for key = first, #KEYS do
    local argument = 2 + 2 * (key - first)
    local full_at = tonumber(known[key] or '')
    if full_at then
        local token = tonumber(ARGV[argument + 1]) / tonumber(ARGV[argument])
        redis.call('SET', KEYS[key], string.format('%.0f', full_at - token), 'KEEPTTL')
    end
end
return 0
