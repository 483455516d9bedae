-- Marks a request as in flight and takes a token of each bucket: all of it, or nothing.
-- KEYS: request, unless the mark is empty; buckets. ARGV: mark, its life in milliseconds; burst and window in
--       microseconds of each bucket.
-- Returns {0, what is known of the request}; {1, whole tokens left and microseconds until the next, of each bucket};
-- or {2, which bucket is empty from 0, its whole tokens left, microseconds until the next}.
-- One token is `window` units and `burst` units flow in per microsecond, so that nothing is rounded.
local first = 1
if ARGV[1] ~= '' then
    local known = redis.pcall('GET', KEYS[1])
    if type(known) == 'table' then
        redis.call('DEL', KEYS[1])
    elseif known and string.match(known, '^%d+ %S+ [01] %S+$') then
        return {0, known}
    end
    first = 2
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local buckets = {}
for key = first, #KEYS do
    local burst, window = tonumber(ARGV[3 + 2 * #buckets]), tonumber(ARGV[4 + 2 * #buckets])
    local full = burst * window
    local known = redis.pcall('HMGET', KEYS[key], 'filled', 'at')
    if known.err then
        redis.call('DEL', KEYS[key])
        known = {}
    end
    local filled, at = tonumber(known[1] or full) or full, tonumber(known[2] or now) or now
    filled = math.min(full, filled + math.max(0, now - at) * burst)
    if filled < window then
        return {2, #buckets, math.floor(filled / window), math.ceil((window - filled) / burst)}
    end
    buckets[#buckets + 1] = {KEYS[key], filled - window, math.max(now, at), full, burst, window}
end
if ARGV[1] ~= '' then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
local answer = {1}
for _, bucket in ipairs(buckets) do
    local key, filled, at, full, burst, window = unpack(bucket)
    redis.call('HSET', key, 'filled', string.format('%.0f', filled), 'at', string.format('%.0f', at))
    redis.call('PEXPIRE', key, math.ceil((full - filled) / burst / 1000) + 1000)
    answer[#answer + 1] = math.floor(filled / window)
    answer[#answer + 1] = math.ceil(math.max(0, window - filled) / burst)
end
return answer
