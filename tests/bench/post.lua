-- wrk: one small JSON POST over and over. Arguments: the path, a file of fields (`Name: value` a line).
-- Ends with a line of JSON: requests, seconds, errors, and the latency's median and 99th percentile in microseconds.

function init(args)
  wrk.method, wrk.path = "POST", args[1]
  wrk.body = '{"prompt":"a harbour at dawn, in the manner of an old postcard","image_size":"landscape_4_3","seed":42}'
  wrk.headers["Host"] = "127.0.0.1"
  for line in io.lines(args[2]) do
    local name, value = line:match("^(.-): (.*)$")
    wrk.headers[name] = value
  end
end

function done(summary, latency)
  local faults = summary.errors
  print(string.format('{"requests":%d,"seconds":%.6f,"errors":%d,"p50":%d,"p99":%d}',
    summary.requests, summary.duration / 1e6,
    faults.connect + faults.read + faults.write + faults.status + faults.timeout,
    latency:percentile(50), latency:percentile(99)))
end
