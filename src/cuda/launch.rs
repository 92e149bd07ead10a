//! A launch of a kernel: its geometry, its work, and its arguments, checked before it starts.

use bytemuck::{Pod, Zeroable};

use super::memory::Memory;

/// One launch of a kernel: its geometry and the least work it does.
///
/// Shared memory is declared by the kernels, or for them in `kernels.rs`. `bytes` counts each input
/// read once and each output written once, `flops` the floating-point operations, so that a profile
/// can compare what was achieved with what is possible.
#[derive(Debug, Clone, Copy)]
pub struct Launch {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: u32,
    /// The least bytes moved.
    pub bytes: u64,
    /// The floating-point operations done.
    pub flops: u64,
}

/// The most arguments a kernel takes.
const MOST_ARGUMENTS: usize = 32;

/// The arguments of a launch, by value, at most eight bytes each.
#[derive(Debug, Default)]
pub struct Arguments {
    slots: [u64; MOST_ARGUMENTS],
    sizes: [usize; MOST_ARGUMENTS],
    count: usize,
}

impl Arguments {
    /// Adds a value.
    pub fn push<T: Pod>(&mut self, value: T) {
        let bytes = bytemuck::bytes_of(&value);
        bytemuck::bytes_of_mut(&mut self.slots[self.count])[..bytes.len()].copy_from_slice(bytes);
        self.sizes[self.count] = bytes.len();
        self.count += 1;
    }

    /// Adds any kernel argument.
    pub fn with(&mut self, argument: impl Argument) -> &mut Self {
        argument.push_to(self);
        self
    }

    /// The sizes of the values, in bytes.
    pub fn sizes(&self) -> &[usize] {
        &self.sizes[..self.count]
    }

    /// The values, each at the beginning of eight bytes.
    pub fn slots(&self) -> &[u64] {
        &self.slots[..self.count]
    }
}

/// A device address as a kernel argument; 0 is null.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Address(pub u64);

impl Address {
    /// The null address.
    pub const NULL: Self = Self(0);
}

/// A value that can be passed to a kernel.
pub trait Argument {
    /// Adds it to the arguments of a launch.
    fn push_to(self, arguments: &mut Arguments);
}

macro_rules! plain_argument {
    ($($type:ty),*) => {
        $(impl Argument for $type {
            fn push_to(self, arguments: &mut Arguments) {
                arguments.push(self);
            }
        })*
    };
}
plain_argument!(u32, u64, f32, f64, Address);

impl<T> Argument for &Memory<T> {
    fn push_to(self, arguments: &mut Arguments) {
        arguments.push(self.address_of(0));
    }
}

/// Launches a kernel on a device, given its geometry, its arguments, and the sizes to name in an
/// error.
///
/// It is one expression, so memory made for an argument is freed only after the launch.
macro_rules! launch {
    ($device:expr, $launch:expr, [$($argument:expr),* $(,)?], $($sizes:tt)+) => {
        $device.launch(
            $launch,
            $crate::cuda::launch::Arguments::default()$(.with($argument))*,
            format_args!($($sizes)+),
        )
    };
}
pub(crate) use launch;

/// How many groups of `size` hold `count`, as one side of a grid.
pub(crate) fn blocks(count: u64, size: u64) -> u32 {
    // The device refuses a grid of 2³¹ blocks or more, with an error that names the sizes.
    u32::try_from(count.div_ceil(size)).unwrap_or(u32::MAX)
}
