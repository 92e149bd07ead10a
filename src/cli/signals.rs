//! Signals that would end the program without a word.

/// Has writing beyond a limit on the size of files fail like any other write, and has a mapped file
/// that is truncated while it is read end the program with its name.
#[cfg(unix)]
pub fn install() {
    unix::install();
}

/// Elsewhere there are no such signals.
#[cfg(not(unix))]
pub fn install() {}

/// Of the signals that ask a program to end, those that this one was started to ignore.
#[cfg(unix)]
pub fn ignored() -> Vec<i32> {
    unix::ignored()
}

/// Ignores some signals.
#[cfg(unix)]
pub fn ignore(signals: &[i32]) {
    unix::ignore(signals);
}

/// None: nobody can ask for it here.
#[cfg(not(unix))]
pub fn ignored() -> Vec<i32> {
    Vec::new()
}

/// Does nothing, as there are none.
#[cfg(not(unix))]
pub fn ignore(_: &[i32]) {}

#[cfg(unix)]
mod unix {
    use std::mem::MaybeUninit;
    use std::ptr;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering};

    use bm3_engine::mapped;

    /// What was done about SIGBUS before.
    static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

    /// What is done about a signal; `None` where the system does not say.
    fn action(signal: libc::c_int) -> Option<libc::sigaction> {
        // SAFETY: a zeroed action is a valid one, which the system overwrites; nothing is changed.
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
            // SAFETY: nothing but a signal's disposition is changed, to one that the system offers.
            unsafe { libc::signal(signal, libc::SIG_IGN) };
        }
    }

    pub fn install() {
        ignore(&[libc::SIGXFSZ]);
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
            on_bus_error;
        // SAFETY: the action is zeroed, which is a valid one, and its fields are set as sigaction(2)
        // asks for with SA_SIGINFO; the handler does what a handler may.
        unsafe {
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = handler as libc::sighandler_t;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigemptyset(&mut action.sa_mask);
            // Where it cannot be set, the program ends as it would have without it.
            if let Some(before) = self::action(libc::SIGBUS) {
                let _ = BEFORE.set(before);
                libc::sigaction(libc::SIGBUS, &action, ptr::null_mut());
            }
        }
    }

    /// Only functions that signal-safety(7) lists are called, and no memory is asked for.
    extern "C" fn on_bus_error(
        signal: libc::c_int,
        information: *mut libc::siginfo_t,
        _: *mut libc::c_void,
    ) {
        // SAFETY: the system gives a handler that is set with SA_SIGINFO its information.
        let address = unsafe { (*information).si_addr() } as usize;
        // SAFETY: the thread that the handler runs in was reading this address.
        unsafe { mapped::with_path_at(address, end_for) };
        // No file of ours: back to what there was before, at the read that is done again now.
        if let Some(before) = BEFORE.get() {
            // SAFETY: this action was in force before.
            unsafe { libc::sigaction(signal, before, ptr::null_mut()) };
        }
    }

    /// Says that the file ended while it was read, and ends.
    fn end_for(path: &[u8]) {
        static SAID: AtomicBool = AtomicBool::new(false);
        // Of several threads one speaks; the others wait for it to end them.
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
            // SAFETY: the buffer has so many bytes; write and _exit may be called in a handler.
            unsafe {
                libc::write(libc::STDERR_FILENO, message.as_ptr().cast(), length);
                libc::_exit(1);
            }
        }
        loop {
            // SAFETY: pause may be called in a handler, and does nothing but wait.
            unsafe { libc::pause() };
        }
    }
}
