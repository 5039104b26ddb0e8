-- wrk's script: bodies of ready pieces, a new number in every request, raw latencies, figures as JSON.
--
-- Arguments after "--": pool file, tasks in a batch, bodies, stride, run (5 characters), "count" or "time", result
-- file, host, path. See tasks.py for what a body is.
--
-- "time": wrk's own percentiles are corrected for coordinated omission before done() sees them (stats_correct in its
-- wrk.c), so raw ones are taken here, between the end of request() and response(). Neither is told its connection, but
-- each thread has a Lua state of its own: with one connection to a thread the two belong together. The caller sees to
-- that. "count" does without response(), so that wrk need not hand every answer to Lua.

local ffi = require("ffi")
ffi.cdef [[
    typedef struct { long s; long ns; } timespec_t;
    int clock_gettime(int, timespec_t *);
]]
local clock = ffi.new("timespec_t")

local function now_us()
    ffi.C.clock_gettime(1, clock) -- CLOCK_MONOTONIC
    return tonumber(clock.s) * 1e6 + tonumber(clock.ns) / 1e3
end

local threads = {}
local bodies, count, counter = {}, 0, 0
local sent_at, run
latencies = {}
odd_answers = 0
result_file = nil

function setup(thread)
    threads[#threads + 1] = thread
    thread:set("thread_number", #threads)
end

local function load(pool_file, batch, wanted, stride, host, path)
    local heads, tails = {}, {}
    for line in io.lines(pool_file) do
        local at = line:find("\1", 1, true)
        heads[#heads + 1] = line:sub(1, at - 1)
        tails[#tails + 1] = line:sub(at + 1)
    end
    local size = #heads
    local between = {}
    for i = 1, size do
        between[i] = tails[(i - 2) % size + 1] .. "," .. heads[i]
    end
    for body = 1, wanted do
        local first = (body - 1) * stride % size
        local pieces = { '{"tasks":[' .. heads[first + 1] }
        for offset = 1, batch - 1 do
            pieces[#pieces + 1] = between[(first + offset) % size + 1]
        end
        pieces[#pieces + 1] = tails[(first + batch - 1) % size + 1] .. "]}"
        local length = 14 * (#pieces - 1)
        for _, piece in ipairs(pieces) do
            length = length + #piece
        end
        pieces[1] = "POST " .. path .. " HTTP/1.1\r\nHost: " .. host .. "\r\nContent-Type: application/json\r\n"
            .. "Content-Length: " .. length .. "\r\n\r\n" .. pieces[1]
        bodies[body] = pieces
    end
end

local function on_response(status)
    latencies[#latencies + 1] = now_us() - sent_at
    if status < 200 or status > 299 then
        odd_answers = odd_answers + 1
    end
end

function init(args)
    load(args[1], tonumber(args[2]), tonumber(args[3]), tonumber(args[4]), args[8], args[9])
    run = args[5]
    if args[6] == "time" then
        response = on_response
    end
    result_file = args[7]
    count = (thread_number * 37) % #bodies
end

function request()
    count = count % #bodies + 1
    counter = counter + 1
    local text = table.concat(bodies[count], string.format("%s%02x%07d", run, thread_number, counter))
    sent_at = now_us()
    return text
end

function done(summary)
    local file = assert(io.open(threads[1]:get("result_file"), "w"))
    file:write(string.format('{"duration_us":%.0f,"requests":%.0f,"bytes":%.0f,"errors":{', summary.duration,
        summary.requests, summary.bytes))
    local odd = 0
    for _, thread in ipairs(threads) do
        odd = odd + thread:get("odd_answers")
    end
    file:write(string.format('"connect":%.0f,"read":%.0f,"write":%.0f,"timeout":%.0f,"status":%.0f,"not_2xx":%.0f}',
        summary.errors.connect, summary.errors.read, summary.errors.write, summary.errors.timeout,
        summary.errors.status, odd))
    file:write(',"latencies_us":[')
    local first = true
    for _, thread in ipairs(threads) do
        for _, latency in ipairs(thread:get("latencies")) do
            file:write(first and "" or ",", string.format("%.1f", latency))
            first = false
        end
    end
    file:write("]}")
    file:close()
end
