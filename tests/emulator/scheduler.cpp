// The emulator's scheduler.

#include "scheduler.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdarg>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "fiber.h"

namespace emulator {
namespace {

const unsigned LANES = 32;

// A copy to shared memory in flight, and its group; of zeros if `from` is null.
struct Copy {
    char* to;
    const char* from;
    unsigned bytes, group;
};

struct Thread {
    Fiber fiber;
    ThreadPlace place;
    Meeting waits_for = Meeting::None;
    unsigned mask = 0;
    unsigned count = 0;
    uint32_t words[WORDS];
    std::vector<Copy> copies;
    // The group of the next copies.
    unsigned group = 0;
    bool done = false;
};

// What each lane of a warp brought to its last meeting.
struct Exchange {
    Brought words[LANES];
    // Meetings of the whole warp, in alternate buffers: a lane may come to the next one before
    // another has read what was brought to the last.
    Brought whole[2][LANES];
    unsigned turn = 0;
};

struct SharedObject {
    std::unique_ptr<char[]> storage;
    size_t bytes;
};

// The state of a host thread that runs blocks.
struct Machine {
    Launch launch;
    BlockPlace block;
    // The first `count` are the block's; the others are spare, for larger blocks.
    std::vector<Thread> threads;
    unsigned count = 0;
    std::vector<Exchange> exchanges;
    std::map<const void*, SharedObject> shared;
    Thread* running = nullptr;
    Fiber scheduler;
    std::string failure;
};

// A plain pointer, since threads ask for it at every step: an object with a constructor would need
// a check each time.
thread_local Machine* current = nullptr;

struct Range {
    Thread* first;
    Thread* last;
    Thread* begin() const { return first; }
    Thread* end() const { return last; }
};

Range block_threads() {
    return Range{current->threads.data(), current->threads.data() + current->count};
}

std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

void wait() { switch_fiber(current->running->fiber, current->scheduler, false); }

void thread_main() {
    current->launch.kernel->entry(current->launch.arguments);
    if (!current->running->copies.empty()) {
        fail("thread %u ends, and has not waited for its copies", current->running->place.number);
    }
    current->running->done = true;
    switch_fiber(current->running->fiber, current->scheduler, true);
}

const char* name_of(Meeting meeting) {
    static const char* names[] = {"nothing", "the block's barrier", "the warp's barrier",
                                  "a shuffle", "a ballot", "a match", "a matrix product",
                                  "a matrix product of halves"};
    return names[static_cast<unsigned>(meeting)];
}

// Resumes all live threads if all of them wait at the block's barrier; returns whether it did.
bool resolve_block() {
    bool any = false;
    for (Thread& thread : block_threads()) {
        if (!thread.done) {
            if (thread.waits_for != Meeting::Block) {
                return false;
            }
            any = true;
        }
    }
    for (Thread& thread : block_threads()) {
        thread.waits_for = Meeting::None;
    }
    return any;
}

// The numbers in a word of a fragment: one, of which the cores read 19 bits, or two halves.
void numbers_of(uint32_t word, float (&numbers)[1]) { numbers[0] = float_of(word & ~0x1fffu); }

void numbers_of(uint32_t word, float (&numbers)[2]) {
    // A table of all halves, since each product asks for hundreds.
    static const std::vector<float> all = [] {
        std::vector<float> numbers(1 << 16);
        for (unsigned half = 0; half < numbers.size(); ++half) {
            numbers[half] = half_to_float(static_cast<unsigned short>(half));
        }
        return numbers;
    }();
    numbers[0] = all[word & 0xffff];
    numbers[1] = all[word >> 16];
}

// d (16 x 8) += a (16 x 8 W) b (8 W x 8) on the fragments that a warp brought, with W numbers to a
// word; common.cuh tells which lane holds what.
template <unsigned W>
void multiply(Brought* brought) {
    float a[16][8 * W], b[8 * W][8], d[16][8];
    for (unsigned lane = 0; lane < LANES; ++lane) {
        unsigned group = lane / 4, in_group = lane % 4;
        for (unsigned half = 0; half < 2; ++half) {
            for (unsigned part = 0; part < 2; ++part) {
                float numbers[W];
                numbers_of(brought[lane][half + 2 * part], numbers);
                memcpy(&a[group + 8 * half][W * in_group + 4 * W * part], numbers, sizeof numbers);
            }
            float numbers[W];
            numbers_of(brought[lane][4 + half], numbers);
            for (unsigned n = 0; n < W; ++n) {
                b[W * in_group + 4 * W * half + n][group] = numbers[n];
            }
            memcpy(&d[group + 8 * half][2 * in_group], &brought[lane][6 + 2 * half], 8);
        }
    }
    for (unsigned row = 0; row < 16; ++row) {
        for (unsigned k = 0; k < 8 * W; ++k) {
            for (unsigned column = 0; column < 8; ++column) {
                d[row][column] = fmaf(a[row][k], b[k][column], d[row][column]);
            }
        }
    }
    for (unsigned lane = 0; lane < LANES; ++lane) {
        for (unsigned half = 0; half < 2; ++half) {
            memcpy(&brought[lane][6 + 2 * half], &d[lane / 4 + 8 * half][2 * (lane % 4)], 8);
        }
    }
}

const unsigned EVERYONE = 0xffffffffu;

// Resumes a warp if all its lanes wait for the same meeting of everyone; returns whether it did.
bool resolve_whole_warp(Thread* lanes, Exchange& exchange) {
    Meeting meeting = lanes[0].waits_for;
    if (meeting < Meeting::Warp) {
        return false;
    }
    for (unsigned lane = 0; lane < LANES; ++lane) {
        if (lanes[lane].waits_for != meeting || lanes[lane].mask != EVERYONE) {
            return false;
        }
    }
    if (meeting == Meeting::Product) {
        multiply<1>(exchange.whole[exchange.turn]);
    } else if (meeting == Meeting::HalfProduct) {
        multiply<2>(exchange.whole[exchange.turn]);
    }
    exchange.turn = 1 - exchange.turn;
    for (unsigned lane = 0; lane < LANES; ++lane) {
        lanes[lane].waits_for = Meeting::None;
    }
    return true;
}

// Resumes those lanes of a warp whose whole mask waits for the same meeting; returns whether there
// were any, or a failure.
bool resolve_warp(unsigned warp) {
    Thread* lanes = &current->threads[warp * LANES];
    unsigned present = current->count - warp * LANES;
    if (present >= LANES && resolve_whole_warp(lanes, current->exchanges[warp])) {
        return true;
    }
    bool any = false;
    for (unsigned first = 0; first < LANES && first < present; ++first) {
        Thread& thread = lanes[first];
        if (thread.done || thread.waits_for < Meeting::Warp) {
            continue;
        }
        bool complete = true;
        for (unsigned lane = 0; lane < LANES; ++lane) {
            if ((thread.mask >> lane & 1) == 0) {
                continue;
            }
            if (lane >= present || lanes[lane].done) {
                char text[200];
                snprintf(text, sizeof text,
                         "lane %u waits at %s for lane %u (mask %08x), which has ended", first,
                         name_of(thread.waits_for), lane, thread.mask);
                current->failure = text;
                return true;
            }
            complete = complete && lanes[lane].waits_for == thread.waits_for
                       && lanes[lane].mask == thread.mask;
        }
        if (!complete) {
            continue;
        }
        unsigned mask = thread.mask;
        for (unsigned lane = 0; lane < LANES; ++lane) {
            if (mask >> lane & 1) {
                Exchange& exchange = current->exchanges[warp];
                memcpy(exchange.words[lane], lanes[lane].words, 4 * lanes[lane].count);
                lanes[lane].waits_for = Meeting::None;
            }
        }
        any = true;
    }
    return any;
}

// Host threads that run blocks; they live as long as the process, and keep their fibers' stacks.
class Workers {
   public:
    static Workers& all() {
        // Never destroyed: its threads may still wait when the process ends.
        static Workers* workers = new Workers();
        return *workers;
    }

    // Runs `work` on every worker, or on this thread if there is one block.
    void run(const std::function<void()>& work, size_t blocks) {
        if (blocks == 1) {
            work();
            return;
        }
        std::unique_lock<std::mutex> lock(mutex_);
        work_ = &work;
        ++round_;
        busy_ = count_;
        wake_.notify_all();
        done_.wait(lock, [this] { return busy_ == 0; });
    }

   private:
    Workers() : count_(std::max(1u, std::thread::hardware_concurrency())) {
        for (unsigned number = 0; number < count_; ++number) {
            std::thread([this] { serve(); }).detach();
        }
    }

    void serve() {
        size_t round = 0;
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return round_ != round; });
            round = round_;
            const std::function<void()>* work = work_;
            lock.unlock();
            (*work)();
            lock.lock();
            if (--busy_ == 0) {
                done_.notify_all();
            }
        }
    }

    std::mutex mutex_;
    std::condition_variable wake_, done_;
    const std::function<void()>* work_ = nullptr;
    size_t round_ = 0;
    unsigned busy_ = 0;
    unsigned count_;
};

// The order in which the warps of a block, and the lanes of a warp, run between two meetings:
// ascending, descending, or mixed.
unsigned turn_of(unsigned position, unsigned count) {
    switch (current->launch.order) {
        case 0:
            return position;
        case 1:
            return count - 1 - position;
        default:
            // 7919 is a prime above every count, so this visits each position once.
            return static_cast<unsigned>((position * 7919ull + current->launch.order) % count);
    }
}

// Runs a warp until each of its threads has ended or waits for other warps; returns whether a
// thread is left.
bool run_warp(unsigned warp) {
    Thread* lanes = &current->threads[warp * LANES];
    unsigned present = std::min(LANES, current->count - warp * LANES);
    for (;;) {
        bool live = false;
        for (unsigned position = 0; position < present; ++position) {
            Thread& thread = lanes[turn_of(position, present)];
            if (!thread.done && thread.waits_for == Meeting::None) {
                current->running = &thread;
                this_thread = &thread.place;
                switch_fiber(current->scheduler, thread.fiber, false);
                if (!current->failure.empty()) {
                    return true;
                }
            }
            live = live || !thread.done;
        }
        if (!live || !resolve_warp(warp) || !current->failure.empty()) {
            return live;
        }
    }
}

void run_block() {
    unsigned count = current->launch.block.x * current->launch.block.y * current->launch.block.z;
    current->count = count;
    current->shared.clear();
    current->exchanges.assign((count + LANES - 1) / LANES, Exchange());
    for (unsigned number = 0; number < count; ++number) {
        Thread& thread = current->threads[number];
        uint3 index{number % current->launch.block.x,
                    number / current->launch.block.x % current->launch.block.y,
                    number / current->launch.block.x / current->launch.block.y};
        thread.place = ThreadPlace{index, number};
        thread.waits_for = Meeting::None;
        thread.copies.clear();
        thread.group = 0;
        thread.done = false;
        start_fiber(thread.fiber, thread_main);
    }
    unsigned warps = (count + LANES - 1) / LANES;
    for (;;) {
        bool live = false;
        for (unsigned position = 0; position < warps; ++position) {
            bool of_warp = run_warp(turn_of(position, warps));
            live = live || of_warp;
            if (!current->failure.empty()) {
                return;
            }
        }
        if (!live) {
            return;
        }
        if (!resolve_block()) {
            std::string text = "no thread can go on:";
            for (Thread& thread : block_threads()) {
                if (!thread.done && text.size() < 400) {
                    text += " thread " + std::to_string(thread.place.number) + " waits for "
                            + name_of(thread.waits_for) + ";";
                }
            }
            current->failure = text;
            return;
        }
    }
}

}  // namespace

__thread const ThreadPlace* this_thread = nullptr;
__thread const BlockPlace* this_block = nullptr;

void fail(const char* format, ...) {
    char text[400];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    current->failure = text;
    // Never resumed: the launch ends with the failure.
    for (;;) {
        wait();
    }
}

void meet_block() {
    current->running->waits_for = Meeting::Block;
    wait();
}

const Brought* meet_warp(Meeting meeting, unsigned mask, const uint32_t* words, unsigned count) {
    Thread& thread = *current->running;
    if ((mask >> lane() & 1) == 0) {
        fail("lane %u is not in the mask %08x it passes to %s", lane(), mask, name_of(meeting));
    }
    thread.waits_for = meeting;
    thread.mask = mask;
    thread.count = count;
    Exchange& exchange = current->exchanges[thread.place.number / LANES];
    if (mask == EVERYONE) {
        Brought* brought = exchange.whole[exchange.turn];
        if (count > 0) {
            memcpy(brought[thread.place.number % LANES], words, 4 * count);
        }
        wait();
        return brought;
    }
    if (count > 0) {
        memcpy(thread.words, words, 4 * count);
    }
    wait();
    return exchange.words;
}

void begin_copy(void* to, const void* from, unsigned bytes, bool is_there) {
    if (reinterpret_cast<size_t>(to) % bytes != 0 || reinterpret_cast<size_t>(from) % bytes != 0) {
        fail("a copy of %u bytes from %p to %p, which are not multiples of that", bytes, from, to);
    }
    memset(to, POISON, bytes);
    const char* source = is_there ? static_cast<const char*>(from) : nullptr;
    current->running->copies.push_back(
        Copy{static_cast<char*>(to), source, bytes, current->running->group});
}

void commit_copies() { ++current->running->group; }

void wait_copies(unsigned youngest) {
    std::vector<Copy>& copies = current->running->copies;
    size_t done = 0;
    for (; done < copies.size() && copies[done].group + youngest < current->running->group; ++done) {
        const Copy& copy = copies[done];
        if (copy.from == nullptr) {
            memset(copy.to, 0, copy.bytes);
        } else {
            memcpy(copy.to, copy.from, copy.bytes);
        }
    }
    copies.erase(copies.begin(), copies.begin() + static_cast<std::ptrdiff_t>(done));
}

void* shared_object(const void* place, size_t bytes, size_t alignment) {
    SharedObject& object = current->shared[place];
    if (!object.storage) {
        // new[] aligns to 16, which is what the widest access needs.
        if (alignment > 16) {
            fail("a shared object wants an alignment of %zu bytes", alignment);
        }
        object.storage.reset(new char[bytes]);
        object.bytes = bytes;
        memset(object.storage.get(), POISON, bytes);
        size_t all = 0;
        for (const auto& entry : current->shared) {
            all += entry.second.bytes;
        }
        // The most that a launch may ask for on every GPU that the kernels are compiled for.
        size_t most = current->launch.shared > 0 ? 99 * 1024 : 48 * 1024;
        if (all > most) {
            fail("the block wants %zu bytes of shared memory of at most %zu", all, most);
        }
    }
    return object.storage.get();
}

void* shared_at_launch(const void* place, size_t bytes, size_t alignment) {
    if (bytes != current->launch.shared) {
        fail("the kernel needs %zu bytes of shared memory at its launch, which asks for %u", bytes,
             current->launch.shared);
    }
    return shared_object(place, bytes, alignment);
}

Register::Register(const char* name, Entry entry, std::vector<size_t> sizes) {
    kernels()[name] = Kernel{name, entry, std::move(sizes)};
}

const Kernel* find_kernel(const std::string& name) {
    auto found = kernels().find(name);
    return found == kernels().end() ? nullptr : &found->second;
}

std::string run(const Launch& launch) {
    size_t threads = static_cast<size_t>(launch.block.x) * launch.block.y * launch.block.z;
    if (threads == 0 || threads > 1024 || launch.grid.x == 0 || launch.grid.y == 0
        || launch.grid.z == 0 || launch.grid.x > 0x7fffffff || launch.grid.y > 65535
        || launch.grid.z > 65535) {
        return "the grid or the block is outside of what a GPU takes";
    }
    size_t blocks = static_cast<size_t>(launch.grid.x) * launch.grid.y * launch.grid.z;
    std::atomic<size_t> next{0};
    std::mutex mutex;
    std::string failure;
    // As on a GPU, blocks run in any order and in parallel.
    auto work = [&]() {
        if (current == nullptr) {
            current = new Machine();
            this_block = &current->block;
        }
        current->launch = launch;
        current->failure.clear();
        if (current->threads.size() < threads) {
            current->threads.resize(threads);
        }
        for (size_t number = next++; number < blocks; number = next++) {
            size_t block = launch.order % 2 == 1 ? blocks - 1 - number : number;
            uint3 index{static_cast<unsigned>(block % launch.grid.x),
                        static_cast<unsigned>(block / launch.grid.x % launch.grid.y),
                        static_cast<unsigned>(block / launch.grid.x / launch.grid.y)};
            current->block = BlockPlace{index, launch.block, launch.grid};
            run_block();
            if (!current->failure.empty()) {
                std::lock_guard<std::mutex> lock(mutex);
                failure = current->failure;
                next = blocks;
            }
        }
        current->shared.clear();
    };
    Workers::all().run(work, blocks);
    return failure;
}

}  // namespace emulator

