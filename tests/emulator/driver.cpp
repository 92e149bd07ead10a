// The part of the CUDA driver's interface that bm3-engine uses, with the emulator behind it. Tests
// build it as libcuda.so, which cudarc loads; the programs under test do not know of it.
//
// It is stricter than a GPU. The work of a stream is not done until something waits for it, which
// exposes a host that reads or reuses memory too early. Fresh and freed memory holds NaN patterns
// between guard words. As on a GPU, an error is sticky until the context is gone.
//
// The environment, or bm3_emulator_set in a test's own process, changes what it emulates:
//   BM3_EMULATOR_DEVICES         number of GPUs [1]
//   BM3_EMULATOR_DRIVER          the CUDA version that the driver supports [13000]
//   BM3_EMULATOR_CAPABILITY      compute capability [90]
//   BM3_EMULATOR_MEMORY          bytes of a GPU's memory [2^40]
//   BM3_EMULATOR_ORDER           the order in which blocks and threads run, see scheduler.h [0]
//   BM3_EMULATOR_STREAMS         when streams made from now on do their work: "late", when
//                                something waits for it, or "early", as soon as it is submitted
//                                or, in a graph, before the work of other streams [late]
//   BM3_EMULATOR_FAIL            a function, of which call BM3_EMULATOR_FAIL_AT (from 1) fails
//   BM3_EMULATOR_FAIL_FOR        how many calls fail from that one on [1]
//   BM3_EMULATOR_FAIL_WITH       "memory": for want of memory
//                                [none]

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "scheduler.h"

typedef int CUresult;
typedef int CUdevice;
typedef unsigned long long CUdeviceptr;

enum : CUresult {
    CUDA_SUCCESS = 0,
    CUDA_ERROR_INVALID_VALUE = 1,
    CUDA_ERROR_OUT_OF_MEMORY = 2,
    CUDA_ERROR_NOT_INITIALIZED = 3,
    CUDA_ERROR_NO_DEVICE = 100,
    CUDA_ERROR_INVALID_DEVICE = 101,
    CUDA_ERROR_INVALID_IMAGE = 200,
    CUDA_ERROR_INVALID_CONTEXT = 201,
    CUDA_ERROR_INVALID_HANDLE = 400,
    CUDA_ERROR_NOT_FOUND = 500,
    CUDA_ERROR_LAUNCH_FAILED = 719,
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901,
    CUDA_ERROR_STREAM_CAPTURE_UNJOINED = 904,
    CUDA_ERROR_STREAM_CAPTURE_ISOLATION = 905,
    CUDA_ERROR_CAPTURED_EVENT = 907,
    CUDA_ERROR_UNKNOWN = 999,
};

namespace {

using emulator::Launch;

const uint32_t GUARD = 0xfee1dead;
#ifdef __SANITIZE_ADDRESS__
// AddressSanitizer has its own guards, which catch reads too.
const size_t GUARD_BYTES = 0;
#else
const size_t GUARD_BYTES = 256;
#endif
using emulator::POISON;

struct Work {
    std::function<CUresult()> run;
    // Done even if work before it has failed.
    bool always = false;
    // In a graph: instead of `run`, waits for the work of `stream` up to `position`.
    bool waits = false;
    size_t stream = 0;
    unsigned long long position = 0;
};

struct Queue {
    std::deque<Work> work;
    // Pieces of work submitted, and done, since the beginning.
    unsigned long long asked = 0;
    unsigned long long done = 0;
    // Whether its work is done as early as possible; otherwise as late.
    bool early = false;
};

// The work of streams that were recorded together; the recording began on the first.
struct Graph {
    std::deque<Queue> queues;
    bool broken = false;
};

struct Stream : Queue {
    // The recording that it is part of, if any, and its number there.
    std::shared_ptr<Graph> capture;
    size_t recorded_as = 0;
};

struct Event {
    // How much work its stream had been given when the event was recorded.
    Stream* stream = nullptr;
    unsigned long long position = 0;
    // The recording that it is part of, if any, and its stream's number there.
    std::weak_ptr<Graph> capture;
    bool captured = false;
    size_t recorded_as = 0;
    // When its stream reached it, for cuEventElapsedTime.
    std::shared_ptr<double> reached;
};

struct Function {
    const emulator::Kernel* kernel;
    // The most shared memory that a launch may ask for in addition to what the kernel declares.
    unsigned most_shared = 48 * 1024;
};

struct Module {
    std::map<std::string, std::unique_ptr<Function>> functions;
};

struct Driver {
    std::recursive_mutex mutex;
    bool initialized = false;
    pid_t process = getpid();
    std::map<std::string, std::string> settings;
    std::map<std::string, unsigned long long> calls;
    std::map<char*, size_t> device_memory;
    std::map<char*, size_t> host_memory;
    size_t used = 0;
    size_t most_used = 0;
    size_t held = 0;  // by the pool
    size_t read = 0;
    std::set<Stream*> streams;
    CUresult sticky = CUDA_SUCCESS;
    std::string failure = "unspecified launch failure";
};

Driver& driver() {
    static Driver* driver = new Driver();
    return *driver;
}

std::string setting(const char* name, const char* standard) {
    auto found = driver().settings.find(name);
    if (found != driver().settings.end()) {
        return found->second;
    }
    const char* value = getenv(name);
    return value != nullptr ? value : standard;
}

unsigned long long number(const char* name, const char* standard) {
    return strtoull(setting(name, standard).c_str(), nullptr, 10);
}

size_t total_memory() { return number("BM3_EMULATOR_MEMORY", "1099511627776"); }

// The error with which this call of a function must fail, if any.
CUresult begin(const char* function) {
    Driver& all = driver();
    if (all.process != getpid()) {
        // A forked process has no driver: queries fail, and any other call kills the process.
        for (const char* asks : {"cuInit", "cuDriver", "cuDeviceGet"}) {
            if (strncmp(function, asks, strlen(asks)) == 0) {
                return CUDA_ERROR_NOT_INITIALIZED;
            }
        }
        raise(SIGKILL);
    }
    if (setting("BM3_EMULATOR_FAIL", "") == function) {
        size_t call = ++all.calls[function], first = number("BM3_EMULATOR_FAIL_AT", "1");
        if (call >= first && call - first < number("BM3_EMULATOR_FAIL_FOR", "1")) {
            std::string name = function;
            if (name == "cuMemAllocAsync" || name == "cuMemHostAlloc" ||
                setting("BM3_EMULATOR_FAIL_WITH", "") == "memory") {
                return CUDA_ERROR_OUT_OF_MEMORY;
            }
            if (name.find("Synchronize") != std::string::npos) {
                // The awaited work has failed, so nothing after it is done.
                all.sticky = CUDA_ERROR_UNKNOWN;
            }
            return CUDA_ERROR_UNKNOWN;
        }
    }
    return CUDA_SUCCESS;
}

#define BEGIN()                                                    \
    std::lock_guard<std::recursive_mutex> lock(driver().mutex);    \
    if (CUresult error = begin(__func__)) {                        \
        return error;                                              \
    }

// For calls that a failed context refuses.
#define BEGIN_IN_CONTEXT()                      \
    BEGIN();                                    \
    if (driver().sticky != CUDA_SUCCESS) {      \
        return driver().sticky;                 \
    }

CUresult fail(const std::string& text) {
    driver().failure = text;
    driver().sticky = CUDA_ERROR_LAUNCH_FAILED;
    return CUDA_ERROR_LAUNCH_FAILED;
}

// Does the work of a queue up to a position; `graph` is the one that it is part of, if any.
CUresult catch_up(Queue& queue, unsigned long long position, Graph* graph = nullptr) {
    while (queue.done < position && !queue.work.empty()) {
        Work work = std::move(queue.work.front());
        queue.work.pop_front();
        ++queue.done;
        if (work.waits) {
            catch_up(graph->queues[work.stream], work.position, graph);
        } else if (driver().sticky == CUDA_SUCCESS || work.always) {
            if (CUresult error = work.run()) {
                driver().sticky = error;
            }
        }
    }
    return driver().sticky;
}

CUresult ask(Stream& stream, Work work) {
    Queue& queue = stream.capture ? stream.capture->queues[stream.recorded_as] : stream;
    queue.work.push_back(std::move(work));
    ++queue.asked;
    if (!stream.capture && stream.early) {
        catch_up(stream, stream.asked);
    }
    return CUDA_SUCCESS;
}

CUresult ask(Stream& stream, std::function<CUresult()> run, bool always = false) {
    Work work;
    work.run = std::move(run);
    work.always = always;
    return ask(stream, std::move(work));
}

// Does the work of a graph: all work of early streams, beginning with another one each time, then
// the first stream's and the work of others that it waits for.
CUresult run_graph(Graph& graph) {
    static size_t begins = 0;
    ++begins;
    for (size_t number = 0; number < graph.queues.size(); ++number) {
        Queue& queue = graph.queues[(begins + number) % graph.queues.size()];
        if (queue.early) {
            catch_up(queue, queue.asked, &graph);
        }
    }
    return catch_up(graph.queues[0], graph.queues[0].asked, &graph);
}

// Whether the first stream of a graph waits, directly or indirectly, for all work of the others.
bool is_joined(Graph graph) {
    for (Queue& queue : graph.queues) {
        for (Work& work : queue.work) {
            work.run = [] { return CUDA_SUCCESS; };
        }
    }
    catch_up(graph.queues[0], graph.queues[0].asked, &graph);
    auto is_done = [](const Queue& queue) { return queue.work.empty(); };
    return std::all_of(graph.queues.begin(), graph.queues.end(), is_done);
}

// Breaks the recording that a stream is part of, during which it must not do anything else.
CUresult unsupported(Stream& stream) {
    stream.capture->broken = true;
    return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

// Whether `bytes` bytes from `address` on lie in one allocation.
bool is_allocated(const std::map<char*, size_t>& all, const char* address, size_t bytes) {
    auto after = all.upper_bound(const_cast<char*>(address));
    if (after == all.begin()) {
        return false;
    }
    --after;
    return address + bytes <= after->first + after->second;
}

bool guards_hold(const char* start, size_t bytes) {
    for (size_t offset = 0; offset < GUARD_BYTES; offset += 4) {
        uint32_t before, after;
        memcpy(&before, start - GUARD_BYTES + offset, 4);
        memcpy(&after, start + bytes + offset, 4);
        if (before != GUARD || after != GUARD) {
            return false;
        }
    }
    return true;
}

void give_back(char* start) {
    Driver& all = driver();
    size_t bytes = all.device_memory[start];
    all.device_memory.erase(start);
    all.used -= bytes;
    memset(start, POISON, bytes);
    free(start - GUARD_BYTES);
}

CUresult run_kernel(const emulator::Kernel* kernel, dim3 grid,
                    dim3 block, unsigned shared, std::vector<std::vector<char>>& arguments) {
    std::vector<void*> pointers;
    for (std::vector<char>& argument : arguments) {
        pointers.push_back(argument.data());
    }
    Launch launch{kernel, grid, block, shared, pointers.data(),
                  static_cast<unsigned>(number("BM3_EMULATOR_ORDER", "0"))};
    std::string problem = emulator::run(launch);
    if (!problem.empty()) {
        return fail("kernel " + kernel->name + ": " + problem);
    }
    for (const auto& entry : driver().device_memory) {
        if (!guards_hold(entry.first, entry.second)) {
            return fail("kernel " + kernel->name + ": a thread wrote outside of a buffer of "
                        + std::to_string(entry.second) + " bytes");
        }
    }
    return CUDA_SUCCESS;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// Changes a setting, for tests with the driver in their own process; an empty value restores the
// default.
void bm3_emulator_set(const char* name, const char* value) {
    std::lock_guard<std::recursive_mutex> lock(driver().mutex);
    if (*value == 0) {
        driver().settings.erase(name);
    } else {
        driver().settings[name] = value;
    }
    driver().calls.clear();
}

// Clears a failure, as a new process would.
void bm3_emulator_recover() {
    std::lock_guard<std::recursive_mutex> lock(driver().mutex);
    driver().sticky = CUDA_SUCCESS;
}

// Bytes of device memory that the pool holds.
unsigned long long bm3_emulator_held() {
    std::lock_guard<std::recursive_mutex> lock(driver().mutex);
    return driver().held;
}

// Bytes of device memory in use, once the work of all streams is done.
unsigned long long bm3_emulator_used() {
    std::lock_guard<std::recursive_mutex> lock(driver().mutex);
    for (Stream* stream : driver().streams) {
        catch_up(*stream, stream->asked);
    }
    return driver().used;
}

// Bytes copied to the host since the process began.
unsigned long long bm3_emulator_read() {
    std::lock_guard<std::recursive_mutex> lock(driver().mutex);
    return driver().read;
}

CUresult cuInit(unsigned) {
    BEGIN();
    if (number("BM3_EMULATOR_DEVICES", "1") == 0) {
        return CUDA_ERROR_NO_DEVICE;
    }
    driver().initialized = true;
    return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int* version) {
    BEGIN();
    *version = static_cast<int>(number("BM3_EMULATOR_DRIVER", "13000"));
    return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char** text) {
    switch (error) {
        case CUDA_ERROR_OUT_OF_MEMORY:
            *text = "CUDA_ERROR_OUT_OF_MEMORY";
            break;
        case CUDA_ERROR_LAUNCH_FAILED:
            *text = "CUDA_ERROR_LAUNCH_FAILED";
            break;
        case CUDA_ERROR_UNKNOWN:
            *text = "CUDA_ERROR_UNKNOWN";
            break;
        default:
            *text = "CUDA_ERROR";
    }
    return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char** text) {
    switch (error) {
        case CUDA_ERROR_OUT_OF_MEMORY:
            *text = "out of memory";
            break;
        case CUDA_ERROR_LAUNCH_FAILED:
            // What really happened, for tests that read it.
            *text = driver().failure.c_str();
            break;
        case CUDA_ERROR_INVALID_IMAGE:
            *text = "device kernel image is invalid";
            break;
        case CUDA_ERROR_NOT_FOUND:
            *text = "named symbol not found";
            break;
        default:
            *text = "unknown error";
    }
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int* count) {
    BEGIN();
    *count = static_cast<int>(number("BM3_EMULATOR_DEVICES", "1"));
    return driver().initialized ? CUDA_SUCCESS : CUDA_ERROR_NOT_INITIALIZED;
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    BEGIN();
    *device = ordinal;
    bool exists = ordinal >= 0
                  && static_cast<unsigned>(ordinal) < number("BM3_EMULATOR_DEVICES", "1");
    return exists ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuDeviceGetName(char* name, int length, CUdevice) {
    BEGIN();
    snprintf(name, static_cast<size_t>(length), "emulated GPU");
    return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem_v2(size_t* bytes, CUdevice) {
    BEGIN();
    *bytes = total_memory();
    return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int* value, int attribute, CUdevice) {
    BEGIN();
    int capability = static_cast<int>(number("BM3_EMULATOR_CAPABILITY", "90"));
    switch (attribute) {
        case 16:  // MULTIPROCESSOR_COUNT
            *value = 4;
            return CUDA_SUCCESS;
        case 75:  // COMPUTE_CAPABILITY_MAJOR
            *value = capability / 10;
            return CUDA_SUCCESS;
        case 76:  // COMPUTE_CAPABILITY_MINOR
            *value = capability % 10;
            return CUDA_SUCCESS;
        case 115:  // MEMORY_POOLS_SUPPORTED
            *value = 1;
            return CUDA_SUCCESS;
        default:
            return CUDA_ERROR_INVALID_VALUE;
    }
}

CUresult cuDevicePrimaryCtxRetain(void** context, CUdevice device) {
    BEGIN();
    *context = reinterpret_cast<void*>(static_cast<size_t>(device) + 1);
    return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { return CUDA_SUCCESS; }

static thread_local void* current_context = nullptr;

CUresult cuCtxGetCurrent(void** context) {
    *context = current_context;
    return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(void* context) {
    current_context = context;
    return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize() {
    BEGIN_IN_CONTEXT();
    for (Stream* stream : driver().streams) {
        catch_up(*stream, stream->asked);
    }
    return driver().sticky;
}

CUresult cuDeviceGetDefaultMemPool(void** pool, CUdevice) {
    BEGIN();
    *pool = reinterpret_cast<void*>(1);
    return CUDA_SUCCESS;
}

// Device memory that the pool holds: it keeps freed memory until it is trimmed.
static size_t reserved() {
    return std::max(driver().used, std::min(driver().held, total_memory()));
}

CUresult cuMemPoolTrimTo(void*, size_t least) {
    BEGIN();
    driver().held = std::max(driver().used, std::min(driver().held, least));
    return CUDA_SUCCESS;
}

CUresult cuMemPoolGetAttribute(void*, int attribute, void* value) {
    BEGIN();
    unsigned long long& bytes = *static_cast<unsigned long long*>(value);
    switch (attribute) {
        case 5: bytes = reserved(); return CUDA_SUCCESS;            // RESERVED_MEM_CURRENT
        case 7: bytes = driver().used; return CUDA_SUCCESS;         // USED_MEM_CURRENT
        case 8: bytes = driver().most_used; return CUDA_SUCCESS;    // USED_MEM_HIGH
        default: return CUDA_ERROR_INVALID_VALUE;
    }
}

CUresult cuMemPoolSetAttribute(void*, int, void*) {
    BEGIN();
    return CUDA_SUCCESS;
}

CUresult cuModuleLoadData(Module** module, const void* image) {
    BEGIN_IN_CONTEXT();
    // The first word of a fatbin, or the image that tests pass instead.
    const uint32_t fatbin = 0xba55ed50;
    if (memcmp(image, &fatbin, 4) != 0 && memcmp(image, "none", 4) != 0) {
        return CUDA_ERROR_INVALID_IMAGE;
    }
    *module = new Module();
    return CUDA_SUCCESS;
}

CUresult cuModuleUnload(Module* module) {
    BEGIN();
    delete module;
    return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(Function** function, Module* module, const char* name) {
    BEGIN_IN_CONTEXT();
    const emulator::Kernel* kernel = emulator::find_kernel(name);
    if (kernel == nullptr) {
        return CUDA_ERROR_NOT_FOUND;
    }
    std::unique_ptr<Function>& place = module->functions[name];
    if (!place) {
        place.reset(new Function{kernel});
    }
    *function = place.get();
    return CUDA_SUCCESS;
}

CUresult cuFuncGetParamInfo(Function* function, size_t index, size_t* offset, size_t* size) {
    BEGIN();
    const std::vector<size_t>& sizes = function->kernel->sizes;
    if (index >= sizes.size()) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    *offset = 0;
    for (size_t i = 0; i <= index; ++i) {
        *offset = (*offset + sizes[i] - 1) / sizes[i] * sizes[i];
        *size = sizes[i];
        *offset += i < index ? sizes[i] : 0;
    }
    return CUDA_SUCCESS;
}

// Supports the one attribute that engines set: the most shared memory that a launch may ask for.
CUresult cuFuncSetAttribute(Function* function, int attribute, int value) {
    BEGIN();
    const int max_dynamic_shared_size_bytes = 8;
    if (attribute != max_dynamic_shared_size_bytes || value < 0 || value > 99 * 1024) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    function->most_shared = static_cast<unsigned>(value);
    return CUDA_SUCCESS;
}

CUresult cuStreamCreate(Stream** stream, unsigned) {
    BEGIN_IN_CONTEXT();
    *stream = new Stream();
    (*stream)->early = setting("BM3_EMULATOR_STREAMS", "late") == "early";
    driver().streams.insert(*stream);
    return CUDA_SUCCESS;
}

CUresult cuStreamDestroy_v2(Stream* stream) {
    BEGIN();
    catch_up(*stream, stream->asked);
    driver().streams.erase(stream);
    delete stream;
    return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(Stream* stream) {
    BEGIN_IN_CONTEXT();
    if (stream->capture) {
        return unsupported(*stream);
    }
    return catch_up(*stream, stream->asked);
}

CUresult cuStreamWaitEvent(Stream* stream, Event* event, unsigned) {
    BEGIN_IN_CONTEXT();
    Stream* other = event->stream;
    if (other == nullptr) {
        return CUDA_SUCCESS;
    }
    unsigned long long position = event->position;
    if (event->captured) {
        std::shared_ptr<Graph> capture = event->capture.lock();
        if (!capture || (stream->capture && stream->capture != capture)) {
            return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
        }
        if (!stream->capture) {
            // The stream joins the recording here.
            stream->capture = capture;
            stream->recorded_as = capture->queues.size();
            capture->queues.emplace_back();
            capture->queues.back().early = stream->early;
        }
        Work work;
        work.waits = true;
        work.stream = event->recorded_as;
        work.position = position;
        return ask(*stream, std::move(work));
    }
    if (stream->capture) {
        stream->capture->broken = true;
        return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
    }
    if (other == stream) {
        return CUDA_SUCCESS;
    }
    return ask(*stream, [other, position] {
        return driver().streams.count(other) != 0 ? catch_up(*other, position) : CUDA_SUCCESS;
    });
}

CUresult cuEventCreate(Event** event, unsigned) {
    BEGIN_IN_CONTEXT();
    *event = new Event();
    return CUDA_SUCCESS;
}

CUresult cuEventDestroy_v2(Event* event) {
    BEGIN();
    delete event;
    return CUDA_SUCCESS;
}

CUresult cuEventRecord(Event* event, Stream* stream) {
    BEGIN_IN_CONTEXT();
    std::shared_ptr<double> reached = std::make_shared<double>(-1.0);
    ask(*stream, [reached] {
        auto now = std::chrono::steady_clock::now().time_since_epoch();
        *reached = std::chrono::duration<double, std::milli>(now).count();
        return CUDA_SUCCESS;
    });
    event->stream = stream;
    event->capture = stream->capture;
    event->captured = stream->capture != nullptr;
    event->recorded_as = stream->recorded_as;
    event->position = event->captured ? stream->capture->queues[stream->recorded_as].asked
                                      : stream->asked;
    event->reached = reached;
    return CUDA_SUCCESS;
}

CUresult cuEventElapsedTime(float* milliseconds, Event* start, Event* end) {
    BEGIN_IN_CONTEXT();
    if (start->captured || end->captured) {
        return CUDA_ERROR_CAPTURED_EVENT;
    }
    if (!start->reached || !end->reached || *start->reached < 0 || *end->reached < 0) {
        return CUDA_ERROR_INVALID_HANDLE;
    }
    *milliseconds = static_cast<float>(*end->reached - *start->reached);
    return CUDA_SUCCESS;
}

CUresult cuEventSynchronize(Event* event) {
    BEGIN_IN_CONTEXT();
    if (event->captured) {
        return CUDA_ERROR_CAPTURED_EVENT;
    }
    if (event->stream == nullptr || driver().streams.count(event->stream) == 0) {
        return CUDA_SUCCESS;
    }
    return catch_up(*event->stream, event->position);
}

CUresult cuMemGetInfo_v2(size_t* free, size_t* total) {
    BEGIN();
    *total = total_memory();
    *free = *total - std::min(*total, reserved());
    return CUDA_SUCCESS;
}

CUresult cuMemAllocAsync(CUdeviceptr* address, size_t bytes, Stream* stream) {
    BEGIN_IN_CONTEXT();
    if (stream->capture) {
        return unsupported(*stream);
    }
    Driver& all = driver();
    if (all.used + bytes > total_memory()) {
        // What this stream frees before is there for it. The driver does not promise to wait for more.
        catch_up(*stream, stream->asked);
        if (all.used + bytes > total_memory()) {
            return CUDA_ERROR_OUT_OF_MEMORY;
        }
    }
    void* raw = nullptr;
    if (posix_memalign(&raw, 256, bytes + 2 * GUARD_BYTES) != 0) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    char* start = static_cast<char*>(raw) + GUARD_BYTES;
    memset(start, POISON, bytes);
    for (size_t offset = 0; offset < GUARD_BYTES; offset += 4) {
        memcpy(start - GUARD_BYTES + offset, &GUARD, 4);
        memcpy(start + bytes + offset, &GUARD, 4);
    }
    all.device_memory[start] = bytes;
    all.used += bytes;
    all.most_used = std::max(all.most_used, all.used);
    all.held = std::max(all.held, all.used);
    *address = reinterpret_cast<CUdeviceptr>(start);
    return CUDA_SUCCESS;
}

CUresult cuMemFreeAsync(CUdeviceptr address, Stream* stream) {
    BEGIN();
    char* start = reinterpret_cast<char*>(address);
    if (driver().device_memory.count(start) == 0) {
        return fail("memory is given back that was not allocated");
    }
    if (stream->capture) {
        // A graph frees only memory that it allocated.
        return unsupported(*stream);
    }
    std::function<CUresult()> run = [start] {
        give_back(start);
        return CUDA_SUCCESS;
    };
    return ask(*stream, run, true);
}

CUresult cuMemHostAlloc(void** address, size_t bytes, unsigned) {
    BEGIN_IN_CONTEXT();
    if (posix_memalign(address, 4096, bytes) != 0) {
        return CUDA_ERROR_OUT_OF_MEMORY;
    }
    memset(*address, POISON, bytes);
    driver().host_memory[static_cast<char*>(*address)] = bytes;
    return CUDA_SUCCESS;
}

CUresult cuMemFreeHost(void* address) {
    BEGIN();
    driver().host_memory.erase(static_cast<char*>(address));
    free(address);
    return CUDA_SUCCESS;
}

CUresult cuMemsetD8Async(CUdeviceptr address, unsigned char value, size_t bytes, Stream* stream) {
    BEGIN_IN_CONTEXT();
    char* start = reinterpret_cast<char*>(address);
    if (!is_allocated(driver().device_memory, start, bytes)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return ask(*stream, [start, value, bytes] {
        memset(start, value, bytes);
        return CUDA_SUCCESS;
    });
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr target, const void* source, size_t bytes,
                              Stream* stream) {
    BEGIN_IN_CONTEXT();
    char* to = reinterpret_cast<char*>(target);
    const char* from = static_cast<const char*>(source);
    if (!is_allocated(driver().device_memory, to, bytes)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    if (is_allocated(driver().host_memory, from, bytes)) {
        // Page-locked memory is read when the copy runs.
        return ask(*stream, [to, from, bytes] {
            memcpy(to, from, bytes);
            return CUDA_SUCCESS;
        });
    }
    if (stream->capture) {
        return unsupported(*stream);
    }
    auto copy = std::make_shared<std::vector<char>>(from, from + bytes);
    return ask(*stream, [to, copy] {
        memcpy(to, copy->data(), copy->size());
        return CUDA_SUCCESS;
    });
}

CUresult cuMemcpyDtoHAsync_v2(void* target, CUdeviceptr source, size_t bytes, Stream* stream) {
    BEGIN_IN_CONTEXT();
    const char* from = reinterpret_cast<const char*>(source);
    if (!is_allocated(driver().device_memory, from, bytes)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    driver().read += bytes;
    return ask(*stream, [target, from, bytes] {
        memcpy(target, from, bytes);
        return CUDA_SUCCESS;
    });
}

CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr target, CUdeviceptr source, size_t bytes,
                              Stream* stream) {
    BEGIN_IN_CONTEXT();
    char* to = reinterpret_cast<char*>(target);
    const char* from = reinterpret_cast<const char*>(source);
    const auto& memory = driver().device_memory;
    if (!is_allocated(memory, to, bytes) || !is_allocated(memory, from, bytes)) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    return ask(*stream, [to, from, bytes] {
        memcpy(to, from, bytes);
        return CUDA_SUCCESS;
    });
}

CUresult cuLaunchKernel(Function* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z,
                        unsigned shared, Stream* stream, void** parameters, void**) {
    BEGIN_IN_CONTEXT();
    // A GPU's limits: only x may exceed 65535.
    if (grid_x > 0x7fffffff || grid_y > 0xffff || grid_z > 0xffff
        || shared > function->most_shared) {
        return CUDA_ERROR_INVALID_VALUE;
    }
    const emulator::Kernel* kernel = function->kernel;
    auto arguments = std::make_shared<std::vector<std::vector<char>>>();
    for (size_t index = 0; index < kernel->sizes.size(); ++index) {
        const char* value = static_cast<const char*>(parameters[index]);
        arguments->emplace_back(value, value + kernel->sizes[index]);
    }
    dim3 grid{grid_x, grid_y, grid_z}, block{block_x, block_y, block_z};
    return ask(*stream, [kernel, grid, block, shared, arguments] {
        return run_kernel(kernel, grid, block, shared, *arguments);
    });
}

CUresult cuStreamBeginCapture_v2(Stream* stream, int) {
    BEGIN_IN_CONTEXT();
    stream->capture = std::make_shared<Graph>();
    stream->capture->queues.emplace_back();
    stream->recorded_as = 0;
    return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(Stream* stream, Graph** graph) {
    // The recording ends for all its streams, even if this call fails.
    std::shared_ptr<Graph> captured = stream->capture;
    for (Stream* other : driver().streams) {
        if (other->capture == captured) {
            other->capture = nullptr;
        }
    }
    BEGIN_IN_CONTEXT();
    *graph = nullptr;
    if (captured->broken) {
        return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
    }
    if (!is_joined(*captured)) {
        return CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
    }
    *graph = new Graph(*captured);
    return CUDA_SUCCESS;
}

CUresult cuStreamIsCapturing(Stream* stream, int* status) {
    BEGIN_IN_CONTEXT();
    *status = !stream->capture ? 0 : stream->capture->broken ? 2 : 1;
    return CUDA_SUCCESS;
}

CUresult cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long) {
    BEGIN_IN_CONTEXT();
    *executable = new Graph(*graph);
    return CUDA_SUCCESS;
}

CUresult cuGraphLaunch(Graph* graph, Stream* stream) {
    BEGIN_IN_CONTEXT();
    auto copy = std::make_shared<Graph>(*graph);
    return ask(*stream, [copy] { return run_graph(*copy); });
}

CUresult cuGraphExecDestroy(Graph* graph) {
    BEGIN();
    delete graph;
    return CUDA_SUCCESS;
}

CUresult cuGraphDestroy(Graph* graph) {
    BEGIN();
    delete graph;
    return CUDA_SUCCESS;
}

}  // extern "C"
#pragma GCC visibility pop
