// Runs one launch of a kernel: its blocks on a few host threads, a block's threads as fibers.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "emulator.h"

namespace emulator {

// What unwritten memory holds: NaN in every floating-point type, and a huge index.
const int POISON = 0xff;

struct Kernel {
    std::string name;
    Entry entry;
    std::vector<size_t> sizes;
};

// The kernel of this name, or null.
const Kernel* find_kernel(const std::string& name);

struct Launch {
    const Kernel* kernel;
    dim3 grid;
    dim3 block;
    // Bytes of shared memory in addition to what the kernel declares.
    unsigned shared;
    void** arguments;
    // The order in which blocks and threads run, see turn_of in scheduler.cpp.
    unsigned order;
};

// Runs all blocks; returns what went wrong, or an empty string.
std::string run(const Launch& launch);

}  // namespace emulator
