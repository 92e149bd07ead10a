//! Signals that would end the program without a message.

/// Makes a write beyond the file size limit fail like any other write, and makes the truncation of
/// a mapped file end the program with a message that names the file.
#[cfg(unix)]
pub fn install() {
    unix::install();
}

/// Other systems have no such signals.
#[cfg(not(unix))]
pub fn install() {}

/// Which of SIGINT, SIGTERM and SIGHUP this process ignores.
#[cfg(unix)]
pub fn ignored() -> Vec<i32> {
    unix::ignored()
}

/// Ignores these signals.
#[cfg(unix)]
pub fn ignore(signals: &[i32]) {
    unix::ignore(signals);
}

/// Empty: only Unix starts programs with signals ignored.
#[cfg(not(unix))]
pub fn ignored() -> Vec<i32> {
    Vec::new()
}

/// Does nothing: there are no signals to ignore.
#[cfg(not(unix))]
pub fn ignore(_: &[i32]) {}

#[cfg(unix)]
mod unix {
    use std::mem::MaybeUninit;
    use std::ptr;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering};

    use bm3_engine::mapped;

    /// SIGBUS's action before [`install`].
    static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

    /// A signal's current action; `None` if the system does not report it.
    fn action(signal: libc::c_int) -> Option<libc::sigaction> {
        // SAFETY: a zeroed action is valid, and the system overwrites it; nothing is changed.
        unsafe {
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            (libc::sigaction(signal, ptr::null(), &mut action) == 0).then_some(action)
        }
    }

    pub fn ignored() -> Vec<libc::c_int> {
        let asking = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
        let is_ignored = |&signal: &libc::c_int| {
            action(signal).is_some_and(|action| action.sa_sigaction == libc::SIG_IGN)
        };
        asking.into_iter().filter(is_ignored).collect()
    }

    pub fn ignore(signals: &[libc::c_int]) {
        for &signal in signals {
            // SAFETY: only the signal's disposition changes, to one that the system offers.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
    }

    pub fn install() {
        ignore(&[libc::SIGXFSZ]);
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            on_bus_error;
        // SAFETY: a zeroed action is valid, and its fields are set as sigaction(2) asks with
        // SA_SIGINFO; the handler does only what a handler may.
        unsafe {
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = handler as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&mut action.sa_mask);
            // If it cannot be set, the program ends as it would have without it.
            if let Some(before) = self::action(libc::SIGBUS) {
                let _ = BEFORE.set(before);
                libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
            }
        }
    }

    /// Calls only functions that signal-safety(7) lists, and allocates no memory.
    extern "C" fn on_bus_error(
        signal: libc::c_int,
        information: *mut libc::siginfo_t,
        _: *mut libc::c_void,
    ) {
        // SAFETY: the system passes this information to a handler set with SA_SIGINFO.
        let address = unsafe { (*information).si_addr() } as usize;
        // SAFETY: the thread that runs the handler was reading this address.
        unsafe { mapped::with_path_at(address, end_for) };
        // Not one of our files: restore the previous action, which the repeated read then meets.
        if let Some(before) = BEFORE.get() {
            // SAFETY: this action was in force before.
            unsafe { libc::sigaction(signal, before, ptr::null_mut()) };
        }
    }

    /// Reports that the file ended while it was read, and exits.
    fn end_for(path: &[u8]) {
        static SAID: AtomicBool = AtomicBool::new(false);
        // One thread reports; the others wait for it to end the process.
        if !SAID.swap(true, Ordering::Relaxed) {
            let mut message = [0u8; 2048];
            let mut length = 0;
            for part in [
                b"error: ",
                path,
                b": ended while it was being read: another program has truncated it, or its disk \
                  fails; put the file back and start again, a run that has a checkpoint with \
                  --resume\n",
            ] {
                let count = part.len().min(message.len() - length);
                message[length..length + count].copy_from_slice(&part[..count]);
                length += count;
            }
            // SAFETY: the buffer holds `length` bytes; a handler may call write and _exit.
            unsafe {
                libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), length);
                libc::_exit(1);
            }
        }
        loop {
            // SAFETY: a handler may call pause, which only waits.
            unsafe { libc::pause() };
        }
    }
}
