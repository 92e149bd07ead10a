// Fibers: stacks switched by hand, in a few nanoseconds each, on x86-64 and AArch64.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define BM3_ASAN 1
#endif

namespace emulator {

const size_t STACK_BYTES = 256 * 1024;

struct Fiber {
    void* stack_pointer = nullptr;
    char* stack = nullptr;
    void* fake_stack = nullptr;
    const void* bottom = nullptr;
    size_t bytes = 0;

    Fiber() = default;
    Fiber(Fiber&& other) noexcept { *this = static_cast<Fiber&&>(other); }
    Fiber& operator=(Fiber&& other) noexcept {
        stack_pointer = other.stack_pointer;
        stack = other.stack;
        fake_stack = other.fake_stack;
        bottom = other.bottom;
        bytes = other.bytes;
        other.stack = nullptr;
        return *this;
    }
    ~Fiber() { free(stack); }
};

// Saves the callee-saved registers on the stack of `from` and restores those of `to`.
extern "C" void bm3_switch_stack(void** from, void* to);

#if defined(__x86_64__)
asm(R"(
.text
.globl bm3_switch_stack
.hidden bm3_switch_stack
.type bm3_switch_stack, @function
bm3_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size bm3_switch_stack, .-bm3_switch_stack
)");
// Six registers, then the return address; one more word keeps the stack aligned as after a call.
const size_t SAVED_WORDS = 8;
const size_t RETURN_WORD = 6;
#elif defined(__aarch64__)
asm(R"(
.text
.globl bm3_switch_stack
.hidden bm3_switch_stack
.type bm3_switch_stack, %function
bm3_switch_stack:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x2, sp
    str x2, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size bm3_switch_stack, .-bm3_switch_stack
)");
const size_t SAVED_WORDS = 20;
const size_t RETURN_WORD = 11;
#else
#error "the emulator switches stacks on x86-64 and AArch64 only"
#endif

thread_local Fiber* bm3_leaving = nullptr;

// Called first after a switch to `fiber`: tells AddressSanitizer that the switch is over.
inline void arrived(Fiber& fiber) {
#ifdef BM3_ASAN
    const void* bottom = nullptr;
    size_t bytes = 0;
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &bottom, &bytes);
    // Notes the stack that was left if it is the scheduler's: only that is not known otherwise.
    if (bm3_leaving->stack == nullptr) {
        bm3_leaving->bottom = bottom;
        bm3_leaving->bytes = bytes;
    }
#else
    (void)fiber;
#endif
}

thread_local Fiber* bm3_arriving = nullptr;
thread_local void (*bm3_main)() = nullptr;

inline void fiber_main() {
    arrived(*bm3_arriving);
    bm3_main();
}

// Leaves `from`, for good if it has ended, and continues `to`.
inline void switch_fiber(Fiber& from, Fiber& to, bool ended) {
    bm3_leaving = &from;
    bm3_arriving = &to;
#ifdef BM3_ASAN
    __sanitizer_start_switch_fiber(ended ? nullptr : &from.fake_stack, to.bottom, to.bytes);
#else
    (void)ended;
#endif
    bm3_switch_stack(&from.stack_pointer, to.stack_pointer);
    arrived(from);
}

// Makes `fiber` run `main` when it is next switched to; its stack is reused.
inline void start_fiber(Fiber& fiber, void (*main)()) {
    if (fiber.stack == nullptr) {
        fiber.stack = static_cast<char*>(malloc(STACK_BYTES));
        if (fiber.stack == nullptr) {
            abort();
        }
    }
    fiber.bottom = fiber.stack;
    fiber.bytes = STACK_BYTES;
    fiber.fake_stack = nullptr;
#ifdef BM3_ASAN
    // An earlier fiber that never returned left poison behind.
    __asan_unpoison_memory_region(fiber.stack, STACK_BYTES);
#endif
    bm3_main = main;
    uintptr_t top = (reinterpret_cast<uintptr_t>(fiber.stack) + STACK_BYTES) & ~uintptr_t(15);
    uint64_t* words = reinterpret_cast<uint64_t*>(top) - SAVED_WORDS;
    for (size_t word = 0; word < SAVED_WORDS; ++word) {
        words[word] = 0;
    }
    words[RETURN_WORD] = reinterpret_cast<uint64_t>(&fiber_main);
    fiber.stack_pointer = words;
}

}  // namespace emulator
