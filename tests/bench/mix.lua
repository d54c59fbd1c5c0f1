-- wrk: what apps do. Every caller submits a job, asks for its status 20 times, takes its result, and begins anew.
-- Arguments: the path, "header" or "path" (where the target stands), its scheme, a file of fields, a file of user keys.
-- The number of the caller is in the job's name and in every answer, so answers alone say what comes next.

local POLLS = 20
local due, first, last = {}, 1, 0 -- requests that may be sent now
local jobs = {} -- polls left, by request id
local keys, fields, path, form, scheme = {}, "", "", "", ""

local function push(request)
  last = last + 1
  due[last] = request
end

local function compose(method, target, caller, body)
  local where, named = path, ""
  if form == "header" then
    named = "x-fal-target-url: " .. scheme .. "://" .. target .. "\r\n"
  else
    where = path .. "/" .. target
  end
  local length = body and ("Content-Length: " .. #body .. "\r\n") or ""
  return method .. " " .. where .. " HTTP/1.1\r\nHost: 127.0.0.1\r\n" .. fields .. named .. length ..
    "Authorization: Bearer " .. keys[caller] .. "\r\n\r\n" .. (body or "")
end

local function submit(caller)
  return compose("POST", "queue.fal.run/bench/job/" .. caller, caller, '{"prompt":"a harbour at dawn"}')
end

function init(args)
  path, form, scheme = args[1], args[2], args[3]
  for line in io.lines(args[4]) do fields = fields .. line .. "\r\n" end
  for line in io.lines(args[5]) do keys[#keys + 1] = line end
  for caller = 1, #keys do push(submit(caller)) end
end

function request()
  if first > last then return submit(1) end
  local next_one = due[first]
  due[first], first = nil, first + 1
  return next_one
end

function response(status, headers, body)
  local id, caller = body:match('"request_id":"(%x+)","caller":(%d+)')
  if id then
    local left = jobs[id] or POLLS
    local job = "queue.fal.run/bench/job/" .. caller .. "/requests/" .. id
    if left > 0 then
      jobs[id] = left - 1
      push(compose("GET", job .. "/status?logs=1", tonumber(caller)))
    else
      jobs[id] = nil
      push(compose("GET", job, tonumber(caller)))
      push(submit(tonumber(caller)))
    end
  end
end

function done(summary, latency)
  local faults = summary.errors
  print(string.format('{"requests":%d,"seconds":%.6f,"errors":%d,"p50":%d,"p99":%d}',
    summary.requests, summary.duration / 1e6,
    faults.connect + faults.read + faults.write + faults.status + faults.timeout,
    latency:percentile(50), latency:percentile(99)))
end
