-- The shared ledger: one script, so that every decision is one step that nothing comes between.
--
--   KEYS[1]  clock: the latest time seen, microseconds since 1970
--   KEYS[2]  leases: sorted set of live reservations by the microsecond at which they end
--   then per scope
--     w  window: hash of slot (the second it was moved to), sums r i o, last seconds charged lr lt,
--        and a field "requests input output" for each second with use, named by the second
--     p  parallel: sorted set like leases, of those reservations that count as parallel
--     m  money: "period spent"
--     d  device time: "period spent"
--
-- All keys but budgets without periods expire. Time is that of this server and never goes back.
-- ARGV: operation, its arguments, then per scope what the operation needs; '' stands for none.
-- Numbers are doubles, exact up to 2^53; the caller bounds every amount below that.

local MICRO, WINDOW, CLOCK_MS, SLACK_MS = 1000000, 60, 86400000, 60000
local ANCHOR = 4 * 86400 * MICRO -- a Monday
local REQUESTS, TOKENS, INPUT, OUTPUT, PARALLEL, BUDGET, DEVICE = 0, 1, 2, 3, 4, 5, 6

local function int(number) return string.format('%.0f', number) end

local time = redis.call('TIME')
local now = tonumber(time[1]) * MICRO + tonumber(time[2])
now = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0))
redis.call('SET', KEYS[1], int(now), 'PX', CLOCK_MS)
local slot = math.floor(now / MICRO)
local scopes = (#KEYS - 2) / 4

local function keys_of(scope)
  local first = 3 + 4 * (scope - 1)
  return KEYS[first], KEYS[first + 1], KEYS[first + 2], KEYS[first + 3]
end

local function parse_cell(text)
  local r, i, o = string.match(text, '(%d+) (%d+) (%d+)')
  return tonumber(r), tonumber(i), tonumber(o)
end

local function cell_text(r, i, o) return string.format('%.0f %.0f %.0f', r, i, o) end

-- Lets go of the seconds that have left the window.
local function move_window(key, w)
  if w.slot < slot - WINDOW then
    redis.call('DEL', key)
    w.r, w.i, w.o, w.lr, w.lt = 0, 0, 0, 0, 0
  else
    local names, gone = {}, {}
    for s = w.slot - WINDOW, slot - WINDOW - 1 do names[#names + 1] = int(s) end
    for n, text in ipairs(redis.call('HMGET', key, unpack(names))) do
      if text then
        local r, i, o = parse_cell(text)
        w.r, w.i, w.o = w.r - r, w.i - i, w.o - o
        gone[#gone + 1] = names[n]
      end
    end
    if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
    redis.call('HSET', key, 'slot', int(slot), 'r', int(w.r), 'i', int(w.i), 'o', int(w.o))
  end
  w.slot = slot
end

local function window(key)
  local h = redis.call('HMGET', key, 'slot', 'r', 'i', 'o', 'lr', 'lt', int(slot))
  if not h[1] then return {slot = slot, r = 0, i = 0, o = 0, lr = 0, lt = 0} end
  local w = {slot = tonumber(h[1]), r = tonumber(h[2]), i = tonumber(h[3]), o = tonumber(h[4]),
             lr = tonumber(h[5]), lt = tonumber(h[6]), cell = h[7]}
  if w.slot < slot then move_window(key, w) end
  return w
end

local function parallel(key)
  redis.call('ZREMRANGEBYSCORE', key, '-inf', int(now))
  return redis.call('ZCARD', key)
end

-- A budget's meter in the period of now. `period` in microseconds; 0: there are none.
local function meter(key, period)
  local index = 0
  if period > 0 then index = math.floor((now - ANCHOR) / period) end
  local text = redis.call('GET', key)
  if text then
    local at, spent = string.match(text, '(%-?%d+) (%d+)')
    if tonumber(at) >= index then return {index = tonumber(at), spent = tonumber(spent), period = period} end
  end
  return {index = index, spent = 0, period = period}
end

local function period_end(m) return (m.index + 1) * m.period + ANCHOR end

local function save_meter(key, m)
  local text = int(m.index) .. ' ' .. int(m.spent)
  if m.period == 0 then
    redis.call('SET', key, text)
  else
    redis.call('SET', key, text, 'PX', int(math.ceil((period_end(m) - now) / 1000) + SLACK_MS))
  end
end

-- Charges device time to every scope; below 0 it gives back what was charged ahead, maybe in a period that has ended.
-- ARGV from `first`: amount, period per scope. The first scope that has none left, from 0; -1: all have some.
local function charge_device(used, first)
  local over = -1
  for scope = 1, scopes do
    local amount, period = ARGV[first + 2 * (scope - 1)], ARGV[first + 2 * (scope - 1) + 1]
    if amount ~= '' then
      local _, _, _, key = keys_of(scope)
      local m = meter(key, tonumber(period))
      m.spent = math.max(0, m.spent + used)
      if used ~= 0 then save_meter(key, m) end
      if over < 0 and m.spent >= tonumber(amount) then over = scope - 1 end
    end
  end
  return over
end

-- The state of a scope, and its limits: nine values of ARGV from `first`.
local function load_scope(scope, first)
  local w_key, p_key, m_key, d_key = keys_of(scope)
  local s = {w = window(w_key), p = parallel(p_key), limits = {}, keys = {w_key, p_key, m_key, d_key}}
  for n = REQUESTS, BUDGET do s.limits[n] = tonumber(ARGV[first + n]) end
  s.limits[DEVICE] = tonumber(ARGV[first + 7])
  if s.limits[BUDGET] then s.m = meter(m_key, tonumber(ARGV[first + 6])) end
  if s.limits[DEVICE] then s.d = meter(d_key, tonumber(ARGV[first + 8])) end
  return s
end

local function load_scopes(first)
  local all = {}
  for scope = 1, scopes do all[scope] = load_scope(scope, first + 9 * (scope - 1)) end
  return all
end

local function append_usages(reply, all)
  for _, s in ipairs(all) do
    local values = {s.w.r, s.w.i, s.w.o, s.p, s.m and s.m.spent or 0, s.d and s.d.spent or 0, s.w.lr, s.w.lt}
    for _, value in ipairs(values) do reply[#reply + 1] = value end
  end
  return reply
end

-- Microseconds until enough of the window has gone: second `slot - WINDOW + n - 1` leaves when `slot + n` begins.
local function window_wait(s, name, excess)
  local names = {}
  for at = slot - WINDOW, slot do names[#names + 1] = int(at) end
  for n, text in ipairs(redis.call('HMGET', s.keys[1], unpack(names))) do
    if text then
      local r, i, o = parse_cell(text)
      local amounts = {[REQUESTS] = r, [TOKENS] = i + o, [INPUT] = i, [OUTPUT] = o}
      excess = excess - amounts[name]
      if excess <= 0 then return (slot + n) * MICRO - now end
    end
  end
  error('the window holds less than its sum')
end

-- How long one limit keeps a demand out: 0, microseconds, or nil for ever.
local function wait(s, name, used, amount)
  local limit = s.limits[name]
  if not limit or used + amount <= limit then return 0 end
  if amount > limit then return nil end
  if name == PARALLEL then
    local at = int(used + amount - limit - 1)
    return tonumber(redis.call('ZRANGE', s.keys[2], at, at, 'WITHSCORES')[2]) - now
  end
  if name == BUDGET or name == DEVICE then
    local m = name == BUDGET and s.m or s.d
    if m.period == 0 then return nil end
    return period_end(m) - now
  end
  return window_wait(s, name, used + amount - limit)
end

-- The limit that keeps a demand out for longest: scope, name, wait. No scope: it fits.
local function worst(all, d)
  local at, which, longest = nil, nil, 0
  for scope, s in ipairs(all) do
    local used = {[REQUESTS] = s.w.r, [TOKENS] = s.w.i + s.w.o, [INPUT] = s.w.i, [OUTPUT] = s.w.o,
                  [PARALLEL] = s.p, [BUDGET] = s.m and s.m.spent or 0, [DEVICE] = s.d and s.d.spent or 0}
    local amounts = {[REQUESTS] = d.r, [TOKENS] = d.i + d.o, [INPUT] = d.i, [OUTPUT] = d.o,
                     [PARALLEL] = d.p, [BUDGET] = d.m, [DEVICE] = 1}
    for name = REQUESTS, DEVICE do
      local time_out = wait(s, name, used[name], amounts[name])
      if not time_out then return scope, name, nil end
      if time_out > longest then at, which, longest = scope, name, time_out end
    end
  end
  return at, which, longest
end

local function charge_window(key, w, d)
  local r, i, o = 0, 0, 0
  if w.cell then r, i, o = parse_cell(w.cell) end
  w.r, w.i, w.o = w.r + d.r, w.i + d.i, w.o + d.o
  if d.r > 0 then w.lr = slot end
  if d.i + d.o > 0 then w.lt = slot end
  redis.call('HSET', key, 'slot', int(w.slot), 'r', int(w.r), 'i', int(w.i), 'o', int(w.o), 'lr', int(w.lr),
             'lt', int(w.lt), int(slot), cell_text(r + d.r, i + d.i, o + d.o))
  redis.call('EXPIRE', key, WINDOW + 2)
end

local function lease(key, ends, id, ttl)
  redis.call('ZADD', key, ends, id)
  redis.call('PEXPIRE', key, ttl)
end

local function ttl_of(lease_us) return int(math.ceil(lease_us / 1000) + 1000) end

local operations = {}

-- lease_us, id, requests, input, output, cost, parallel; nine limits per scope.
-- {1, now, usages}, or {0, now, scope, limit, whether it ever fits, wait, usages}.
function operations.reserve()
  local lease_us, id = tonumber(ARGV[2]), ARGV[3]
  local d = {r = tonumber(ARGV[4]), i = tonumber(ARGV[5]), o = tonumber(ARGV[6]), m = tonumber(ARGV[7]),
             p = tonumber(ARGV[8])}
  local all = load_scopes(9)
  local scope, name, time_out = worst(all, d)
  if scope then
    return append_usages({0, now, scope - 1, name, time_out and 1 or 0, time_out or 0}, all)
  end
  local ends, ttl = int(now + lease_us), ttl_of(lease_us)
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', int(now))
  lease(KEYS[2], ends, id, ttl)
  for _, s in ipairs(all) do
    charge_window(s.keys[1], s.w, d)
    if d.p > 0 then
      lease(s.keys[2], ends, id, ttl)
      s.p = s.p + 1
    end
    if s.m then
      s.m.spent = s.m.spent + d.m
      save_meter(s.keys[3], s.m)
    end
  end
  return append_usages({1, now}, all)
end

-- id, second it was reserved in, unused requests, input, output, cost, device_us; amount and period of the
-- device budget per scope; period and its number of the money budget per scope. {whether its lease was live}.
function operations.settle()
  local id, at = ARGV[2], tonumber(ARGV[3])
  local r, i, o, cost = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
  charge_device(tonumber(ARGV[8]), 9)
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', int(now))
  if redis.call('ZREM', KEYS[2], id) == 0 then return {0} end
  for scope = 1, scopes do
    local w_key, p_key, m_key = keys_of(scope)
    redis.call('ZREM', p_key, id)
    if r + i + o > 0 then
      local h = redis.call('HMGET', w_key, 'slot', 'r', 'i', 'o', int(at))
      if h[5] and at >= tonumber(h[1]) - WINDOW then
        local cr, ci, co = parse_cell(h[5])
        redis.call('HSET', w_key, 'r', int(tonumber(h[2]) - r), 'i', int(tonumber(h[3]) - i),
                   'o', int(tonumber(h[4]) - o), int(at), cell_text(cr - r, ci - i, co - o))
      end
    end
    local first = 9 + 2 * scopes + 2 * (scope - 1)
    if cost > 0 and ARGV[first] ~= '' then
      local m = meter(m_key, tonumber(ARGV[first]))
      if m.index == tonumber(ARGV[first + 1]) then
        m.spent = m.spent - cost
        save_meter(m_key, m)
      end
    end
  end
  return {1}
end

-- device_us; amount and period of the device budget per scope. {a scope that has none left, or -1; now}.
function operations.charge()
  return {charge_device(tonumber(ARGV[2]), 3), now}
end

-- lease_us, ids. The ids whose leases have ended.
function operations.renew()
  local lease_us, lost = tonumber(ARGV[2]), {}
  local ends, ttl = int(now + lease_us), ttl_of(lease_us)
  for n = 3, #ARGV do
    local score = redis.call('ZSCORE', KEYS[2], ARGV[n])
    if score and tonumber(score) > now then
      redis.call('ZADD', KEYS[2], 'XX', ends, ARGV[n])
      for scope = 1, scopes do
        local _, p_key = keys_of(scope)
        redis.call('ZADD', p_key, 'XX', ends, ARGV[n])
      end
    else
      lost[#lost + 1] = ARGV[n]
    end
  end
  redis.call('PEXPIRE', KEYS[2], ttl)
  for scope = 1, scopes do
    local _, p_key = keys_of(scope)
    redis.call('PEXPIRE', p_key, ttl)
  end
  return lost
end

-- Nine limits per scope. {now, usages}.
function operations.remaining()
  return append_usages({now}, load_scopes(2))
end

return operations[ARGV[1]]()
