-- wrk's script: asks for the two pages of guest/debian/prepare in turn, at a limited rate, and looks at every
-- byte.
local pages = {}
for _, count in ipairs({ 128, 8192 }) do
  local lines = {}
  for number = 0, count - 1 do
    lines[#lines + 1] = string.format("%07d\n", number)
  end
  pages[count * 8] = table.concat(lines)
end

local threads = {}

function setup(thread)
  threads[#threads + 1] = thread
end

function init(arguments)
  pause_ms = tonumber(arguments[1])
  asked, right, wrong = 0, 0, 0
end

function delay()
  return pause_ms
end

function request()
  asked = asked + 1
  return wrk.format("GET", asked % 4 == 0 and "/64k" or "/1k")
end

function response(status, headers, body)
  if status == 200 and headers["Content-Length"] == tostring(#body) and pages[#body] == body then
    right = right + 1
  else
    wrong = wrong + 1
  end
end

function done(summary)
  local asked, right, wrong = 0, 0, 0
  for _, thread in ipairs(threads) do
    asked = asked + thread:get("asked")
    right = right + thread:get("right")
    wrong = wrong + thread:get("wrong")
  end
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"asked":%d,"right":%d,"wrong":%d,"connect":%d,"read":%d,"write":%d,' ..
      '"status":%d,"timeout":%d,"us":%d}\n',
    asked, right, wrong, errors.connect, errors.read, errors.write,
    errors.status, errors.timeout, summary.duration))
end
