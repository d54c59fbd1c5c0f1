-- Every operation of RedisStore, each one atomic step. The names of the keys are listed in redis.py.
--
-- ARGV: the epoch that the caller has seen (empty: none yet, the reply tells it) and the one to write if there is none,
-- a moment that replaces Redis' own time (tests only; else empty), the operation, its argument in MessagePack. The reply
-- is MessagePack too: cjson would round money to 14 digits, and Redis itself cuts Lua's numbers to integers.
-- All judging comes before the first write, because Redis rolls nothing back.
--
-- SLOTS, RECORD, REQUEST_LEASE, TOMBSTONE, FIRST_ASK, LONGEST_ASK, LATE_ASKS and CONCURRENCY_RETRY come from Python, where they are defined.

local HOUR = 3600
local DAY = 24 * HOUR
local PURSE_GRACE = RECORD + 3 * HOUR
local AT_ONCE = 32 -- leftovers ended by one operation

local P = 'fal-proxy:'
local LEASES, ASKS, RECORDS = P .. 'leases', P .. 'asks', P .. 'records'
local UNTOLD, TELLABLE = P .. 'untold', P .. 'tellable'
local call = redis.call

local known = call('MGET', P .. 'epoch', P .. 'now')
local epoch = known[1]
if ARGV[1] == '' and not epoch then
  epoch = ARGV[2]
  call('SET', P .. 'epoch', epoch)
elseif ARGV[1] ~= '' and epoch ~= ARGV[1] then
  return redis.error_reply('EPOCH this Redis is not the one that held the budgets')
end

local function exactly(number)
  return string.format('%.17g', number)
end

-- The store's time never runs backwards, whichever server has become the primary.
local now = tonumber(ARGV[3])
if not now then
  local time = call('TIME')
  now = time[1] + time[2] / 1000000
end
if known[2] and tonumber(known[2]) >= now then
  now = tonumber(known[2])
else
  call('SET', P .. 'now', exactly(now))
end

-- What is void is no entry any more, whatever stands behind the word.
local function load(name)
  local raw = call('GET', name)
  return raw and raw:sub(1, 4) ~= 'void' and cmsgpack.unpack(raw) or nil
end

local function keep(name, value)
  call('SET', name, cmsgpack.pack(value), 'KEEPTTL')
end

-- Periods, as periods.py. Days are counted from 1970-01-01, a Thursday. The calendar is Howard Hinnant's
-- days_from_civil and civil_from_days: years begin in March, so that the leap day is the last one.

local function days_of(year, month, day)
  if month <= 2 then
    year = year - 1
  end
  local era = math.floor(year / 400)
  local of_era = year - era * 400
  local of_year = math.floor((153 * ((month + 9) % 12) + 2) / 5) + day - 1
  return era * 146097 + of_era * 365 + math.floor(of_era / 4) - math.floor(of_era / 100) + of_year - 719468
end

local function date_of(days)
  local shifted = days + 719468
  local era = math.floor(shifted / 146097)
  local of_era = shifted - era * 146097
  local years = of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524) - math.floor(of_era / 146096)
  local year = math.floor(years / 365)
  local of_year = of_era - (365 * year + math.floor(year / 4) - math.floor(year / 100))
  local month = math.floor((5 * of_year + 2) / 153)
  local day = of_year - math.floor((153 * month + 2) / 5) + 1
  month = month < 10 and month + 3 or month - 9
  return year + era * 400 + (month <= 2 and 1 or 0), month, day
end

-- Return the label of the running period, and when it ends (nil: never).
local function running(period)
  if period == 'total' then
    return 'total', nil
  end
  local days = math.floor(now / DAY)
  if period == 'week' then
    local monday = days - (days + 3) % 7
    local year = date_of(monday + 3) -- the ISO year is that of the week's Thursday
    local week = math.floor((monday + 3 - days_of(year, 1, 1)) / 7) + 1
    return string.format('%04d-W%02d', year, week), (monday + 7) * DAY
  end
  local year, month, day = date_of(days)
  if period == 'month' then
    local next_year, next_month = month == 12 and year + 1 or year, month % 12 + 1
    return string.format('%04d-%02d', year, month), days_of(next_year, next_month, 1) * DAY
  end
  if period == 'day' then
    return string.format('%04d-%02d-%02d', year, month, day), (days + 1) * DAY
  end
  local hour = math.floor(now / HOUR)
  return string.format('%04d-%02d-%02dT%02d', year, month, day, hour % 24), (hour + 1) * HOUR
end

local function purse_of(budget)
  local label, ends = running(budget[3])
  return P .. 'purse:' .. budget[3] .. ':' .. label .. ':' .. budget[1], ends
end

-- Rates, as windows.py: a window is {slot, count, slot, count, ...}, oldest first.

local function window_of(rate, windows)
  local name = P .. 'rate:' .. rate[3] .. ':' .. rate[1]
  local window = windows[name]
  if not window then
    window = { name = name, hits = {}, total = 0, slot = math.floor(now * SLOTS / rate[3]) }
    local hits = load(name) or {}
    for at = 1, #hits, 2 do
      if hits[at] >= window.slot - SLOTS then
        window.hits[#window.hits + 1] = hits[at]
        window.hits[#window.hits + 1] = hits[at + 1]
        window.total = window.total + hits[at + 1]
      end
    end
    windows[name] = window
  end
  return window
end

local function hit(window, seconds)
  local hits = window.hits
  if hits[#hits - 1] == window.slot then
    hits[#hits] = hits[#hits] + 1
  else
    hits[#hits + 1] = window.slot
    hits[#hits + 1] = 1
  end
  window.total = window.total + 1
  call('SET', window.name, cmsgpack.pack(hits), 'PX', math.ceil((seconds + 2 * seconds / SLOTS) * 1000))
end

local function rate_state(window, limit, seconds)
  local left = math.max(limit - window.total, 0)
  local surplus = math.max(window.total - limit, 0)
  for at = 1, #window.hits, 2 do
    surplus = surplus - window.hits[at + 1]
    if surplus < 0 then
      return { left, (window.hits[at] + SLOTS + 1) * (seconds / SLOTS) - now }
    end
  end
  return { left, 0 }
end

-- Entries

local function free(id, entry)
  for _, slots in ipairs(entry.slots) do
    call('SREM', slots, id)
  end
  entry.slots = {}
end

-- Keep a change that nobody is there to tell of.
local function leave(entry, change, cause)
  if change ~= 0 then
    local number = call('INCR', P .. 'changes')
    local kept = { number, change, cause, entry.payer or {}, entry.request_id or '' }
    call('HSET', UNTOLD, number, cmsgpack.pack(kept))
    call('ZADD', TELLABLE, exactly(now), number)
  end
end

-- Returns what is to be told: the change, and what was put onto the entry.
local function settle(id, entry, outcome, amount)
  local more = amount - entry.charged + (entry.onto or 0)
  for _, purse in ipairs(entry.purses) do
    if call('EXISTS', purse) == 1 then -- one that is over for good must not rise again without an end
      if call('HINCRBY', purse, 'spent', exactly(amount - entry.charged)) < 0 then
        call('HSET', purse, 'spent', 0) -- `forget` came in between
      end
      if entry.outcome == '' then
        call('HINCRBY', purse, 'reserved', exactly(0 - entry.amount)) -- not the unary minus: of 0 it is -0
      end
    end
  end
  entry.outcome, entry.charged, entry.onto = outcome, amount, 0
  free(id, entry)
  call('ZREM', LEASES, id)
  return more
end

local function end_leases()
  for _, id in ipairs(call('ZRANGEBYSCORE', LEASES, '-inf', exactly(now), 'LIMIT', 0, AT_ONCE)) do
    local name = P .. 'entry:' .. id
    local entry = load(name)
    if entry and entry.outcome == '' then
      leave(entry, settle(id, entry, 'as_reserved', entry.amount), 'lease_end')
      keep(name, entry)
      if entry.request_id == '' then
        call('EXPIRE', name, 2 * HOUR) -- its process may only have been cut off: what fal billed still replaces it
      end
    else
      call('ZREM', LEASES, id)
    end
  end
end

local function lease(id, ends)
  call('ZADD', LEASES, exactly(ends), id)
  call('EXPIRE', LEASES, DAY + 2 * HOUR)
end

-- Records

local function find(request_id)
  local record = load(P .. 'record:' .. request_id)
  return record and record.born + RECORD > now and record or nil
end

local function drop_record(request_id)
  local name = P .. 'record:' .. request_id
  local record = load(name)
  call('DEL', name)
  call('ZREM', RECORDS, request_id)
  call('ZREM', ASKS, request_id)
  call('ZREM', P .. 'owner:' .. (record and record.flooder or ''), request_id)
  local entry = record and load(P .. 'entry:' .. record.entry_id)
  if entry and entry.outcome == '' then
    entry.request_id = '' -- it ends with its lease
    keep(P .. 'entry:' .. record.entry_id, entry)
  elseif entry then
    call('DEL', P .. 'entry:' .. record.entry_id)
  end
end

-- `flag` XX: only if the job is still watched.
local function ask_at(request_id, moment, flag)
  call('ZADD', ASKS, flag or 'CH', exactly(moment), request_id)
end

local function owned(record, question)
  local _, app, identities, anonymous = unpack(question)
  local apps, mine = {}, {}
  for _, name in ipairs(record.apps) do
    apps[name] = true
  end
  for _, name in ipairs(record.owners) do
    mine[name] = true
  end
  if not apps[app] then
    return false
  end
  if #record.owners == 0 then
    return anonymous
  end
  for _, name in ipairs(identities) do
    if mine[name] then
      return true
    end
  end
  return false
end

local operations = {}
