//! Adam's constants for every step, on a device (`adam.cuh`).

use std::sync::Arc;

use super::device::Device;
use super::launch::Address;
use super::memory::Memory;
use crate::Result;
use crate::backend::AdamStep;

/// `AdamStep` of `adam.cuh`: step size and root factor.
type DeviceStep = [f32; 2];

/// The least room, in steps.
const LEAST: usize = 1024;

/// The constants of all steps from the first on.
#[derive(Debug, Default)]
pub struct CudaSchedule {
    steps: Vec<DeviceStep>,
    copy: Option<Memory<DeviceStep>>,
}

impl CudaSchedule {
    /// Sets the constants of the steps after the first `known`.
    ///
    /// # Errors
    /// [`crate::Error::DeviceMemory`] and [`crate::Error::DeviceOperation`].
    pub(super) fn set(
        &mut self,
        device: &Arc<Device>,
        known: usize,
        constants: &[AdamStep],
    ) -> Result<()> {
        self.steps.truncate(known);
        let new = |step: &AdamStep| [step.step_size as f32, step.root_factor as f32];
        self.steps.extend(constants.iter().map(new));
        let what = "the constants of steps";
        match &mut self.copy {
            Some(copy) if copy.len() >= self.steps.len() => {
                copy.write(known, &self.steps[known..], what)
            }
            _ => {
                // Free the old memory before allocating more.
                self.copy = None;
                let room = room_for(self.steps.len());
                let copy = self.copy.insert(Memory::new(device, room, what)?);
                copy.write(0, &self.steps, what)
            }
        }
    }

    /// The address of the constants.
    pub(super) fn address(&self) -> Address {
        self.copy.as_ref().map_or(Address::NULL, |copy| copy.address_of(0))
    }
}

/// The room for `steps` steps, which depends on nothing else: a resumed run takes no more than one
/// that grew into it.
pub(super) fn room_for(steps: usize) -> usize {
    steps.next_power_of_two().max(LEAST)
}
