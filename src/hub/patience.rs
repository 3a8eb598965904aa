//! How long a connection may be silent, and that a person may stop it meanwhile. `ureq` has limits for whole bodies alone,
//! which say nothing of a download of hours.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// How often a waiting connection looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(100);

/// What is waited for, and who may end it.
#[derive(Clone)]
pub(super) struct Patience {
    pub silence: Duration,
    pub stop: Arc<AtomicBool>,
}

impl fmt::Debug for Patience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Patience").field("silence", &self.silence).finish_non_exhaustive()
    }
}

impl<In: Transport> Connector<In> for Patience {
    type Out = Patient<In>;

    fn connect(&self, _: &ConnectionDetails, chained: Option<In>) -> Result<Option<Self::Out>, ureq::Error> {
        Ok(chained.map(|inner| Patient { inner, patience: self.clone() }))
    }
}

/// A connection that is given up where nothing comes for too long.
#[derive(Debug)]
pub(super) struct Patient<T> {
    inner: T,
    patience: Patience,
}

impl<T: Transport> Transport for Patient<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        let after = self.patience.silence.min(*timeout.after).into();
        self.inner.transmit_output(amount, NextTimeout { after, ..timeout })
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let started = Instant::now();
        let most = self.patience.silence.min(*timeout.after);
        loop {
            if self.patience.stop.load(Ordering::Relaxed) {
                return Err(ureq::Error::Timeout(timeout.reason));
            }
            let left = most.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(ureq::Error::Timeout(timeout.reason));
            }
            // A wait that is over leaves the connection as it was.
            match self.inner.await_input(NextTimeout { after: left.min(LOOK).into(), ..timeout }) {
                Err(ureq::Error::Timeout(_)) => {}
                other => return other,
            }
        }
    }

    fn is_open(&mut self) -> bool {
        self.inner.is_open()
    }

    fn is_tls(&self) -> bool {
        self.inner.is_tls()
    }
}
