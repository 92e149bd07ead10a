//! Arrays of numbers on a device.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::DevicePtr;

use super::allocation::Allocation;
use super::device::Device;
use super::launch::Address;
use crate::Result;

/// Copies to the host of this many bytes or more go through page-locked memory, in parts.
pub(super) const LARGE: usize = 4 << 20;

/// An array of numbers on a device; freed when dropped, after the work in flight.
pub struct Memory<T> {
    /// `None` when empty: a device does not allocate zero bytes. Goes before the device, the last of
    /// which gives what is freed back to the driver.
    bytes: Option<Allocation>,
    device: Arc<Device>,
    length: usize,
    marker: PhantomData<T>,
}

impl<T> fmt::Debug for Memory<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Memory({} at {:#x})", self.length, self.address_of(0).0)
    }
}

impl<T: Pod> Memory<T> {
    /// Room for `length` numbers, undefined until written.
    ///
    /// # Errors
    /// [`crate::Error::DeviceMemory`] naming `what` it was for, and
    /// [`crate::Error::DeviceOperation`].
    pub fn new(device: &Arc<Device>, length: usize, what: &str) -> Result<Self> {
        let bytes = match length * size_of::<T>() {
            0 => None,
            bytes => Some(device.allocate(bytes, what)?),
        };
        Ok(Self { device: device.clone(), bytes, length, marker: PhantomData })
    }

    /// `length` zeros.
    ///
    /// # Errors
    /// As for [`Memory::new`].
    pub fn zeros(device: &Arc<Device>, length: usize, what: &str) -> Result<Self> {
        let mut memory = Self::new(device, length, what)?;
        if let Some(bytes) = &mut memory.bytes {
            let done = device.stream().memset_zeros(&mut **bytes);
            done.map_err(|error| device.failed(format!("clearing {what}"), error))?;
        }
        Ok(memory)
    }

    /// A copy of `values`.
    ///
    /// # Errors
    /// As for [`Memory::new`].
    pub fn from_slice(device: &Arc<Device>, values: &[T], what: &str) -> Result<Self> {
        let mut memory = Self::new(device, values.len(), what)?;
        memory.write(0, values, what)?;
        Ok(memory)
    }

    /// Copies `values` to the elements from `start` on; they may be changed once this returns.
    ///
    /// # Errors
    /// [`crate::Error::DeviceOperation`] if the copy fails.
    pub fn write(&mut self, start: usize, values: &[T], what: &str) -> Result<()> {
        assert!(start + values.len() <= self.length, "{what}: written beyond its end");
        let Some(bytes) = self.bytes.as_mut().filter(|_| !values.is_empty()) else {
            return Ok(());
        };
        let range = start * size_of::<T>()..(start + values.len()) * size_of::<T>();
        let values: &[u8] = bytemuck::cast_slice(values);
        let mut target = bytes.slice_mut(range);
        self.device.stream().memcpy_htod(values, &mut target).map_err(|error| {
            self.device.failed(format!("copying {} bytes to {what}", values.len()), error)
        })
    }

    /// Reads the elements of `range`, once the work queued so far is done.
    ///
    /// # Errors
    /// [`crate::Error::DeviceOperation`] if the copy, or work queued before it, fails.
    pub fn read(&self, range: Range<usize>) -> Result<Vec<T>> {
        assert!(range.end <= self.length, "memory of {} is read to {}", self.length, range.end);
        let mut values = vec![T::zeroed(); range.len()];
        self.copy_to(range.start * size_of::<T>(), bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }

    /// Copies the elements of `range` to new memory on the device, as bytes.
    ///
    /// # Errors
    /// As for [`Memory::new`].
    pub(super) fn copy(&self, range: Range<usize>, what: &str) -> Result<Memory<u8>> {
        assert!(range.end <= self.length, "memory of {} is copied to {}", self.length, range.end);
        let range = range.start * size_of::<T>()..range.end * size_of::<T>();
        let mut copy = Memory::new(&self.device, range.len(), what)?;
        if let (Some(source), Some(target)) = (&self.bytes, &mut copy.bytes) {
            let done = self.device.stream().memcpy_dtod(&source.slice(range), &mut **target);
            done.map_err(|error| self.device.failed(format!("copying {what}"), error))?;
        }
        Ok(copy)
    }
}

impl<T> Memory<T> {
    /// Copies `target.len()` bytes, from byte `start` on.
    fn copy_to(&self, start: usize, target: &mut [u8]) -> Result<()> {
        let Some(bytes) = self.bytes.as_ref().filter(|_| !target.is_empty()) else {
            return Ok(());
        };
        // Panics unless the range is within the memory.
        let part = bytes.slice(start..start + target.len());
        if target.len() >= LARGE {
            let from = Address(self.address_of(0).0 + start as u64);
            // SAFETY: `from` is the address of `part`, which has as many bytes as `target`.
            return unsafe { self.device.download_parts(from, target) };
        }
        let stream = self.device.stream();
        stream.memcpy_dtoh(&part, target).and_then(|()| stream.synchronize()).map_err(|error| {
            self.device.failed(format!("copying {} bytes from the device", target.len()), error)
        })
    }
}

impl Memory<u8> {
    /// Reads all bytes, as numbers of another type.
    ///
    /// # Errors
    /// As for [`Memory::read`].
    pub(super) fn read_as<T: Pod>(&self) -> Result<Vec<T>> {
        let mut values = vec![T::zeroed(); self.length / size_of::<T>()];
        self.copy_to(0, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }
}

impl<T> Memory<T> {
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The address of element `index`, which is at most the length; null when empty.
    pub fn address_of(&self, index: usize) -> Address {
        assert!(index <= self.length, "element {index} of {}", self.length);
        match &self.bytes {
            None => Address::NULL,
            // The guard would record the use for other streams. Those that use it, the device's
            // branches, are ordered by their callers (`Backend::after`).
            Some(bytes) => {
                Address(bytes.device_ptr(bytes.stream()).0 + (index * size_of::<T>()) as u64)
            }
        }
    }
}
