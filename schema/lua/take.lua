-- Takes a token of a bucket: returns whether there was one, whole tokens left, and microseconds until the next.
-- One token is `window` units and `burst` units flow in per microsecond, so that nothing is rounded.
-- KEYS: bucket. ARGV: burst, window in microseconds.
local burst, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local full = burst * window
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local known = redis.call('HMGET', KEYS[1], 'filled', 'at')
local filled, at = tonumber(known[1] or full), tonumber(known[2] or now)
filled = math.min(full, filled + math.max(0, now - at) * burst)
local allowed = 0
if filled >= window then
    allowed, filled = 1, filled - window
end
redis.call('HSET', KEYS[1], 'filled', string.format('%.0f', filled), 'at', string.format('%.0f', math.max(now, at)))
redis.call('PEXPIRE', KEYS[1], math.ceil((full - filled) / burst / 1000) + 1000)
return {allowed, math.floor(filled / window), math.ceil(math.max(0, window - filled) / burst)}
