//! How long a connection may be silent or drip, and that a person may stop it meanwhile. `ureq` has limits for whole bodies alone,
//! which say nothing of a download of hours.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ureq::unversioned::transport::{Buffers, ConnectionDetails, Connector, NextTimeout, Transport};

/// How often a waiting connection looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(100);

/// Bytes that must come in a second, while they are waited for.
const LEAST: f64 = 1000.0;

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
        Ok(chained.map(|inner| Patient { inner, patience: self.clone(), waited: Duration::ZERO, came: 0 }))
    }
}

/// A connection that is given up where nothing comes for too long, or too little for twice that.
#[derive(Debug)]
pub(super) struct Patient<T> {
    inner: T,
    patience: Patience,
    /// How long it was waited for bytes, and how many came, since the last count. That nobody reads is not the server's fault.
    waited: Duration,
    came: usize,
}

impl<T: Transport> Patient<T> {
    /// Counts what came in a wait.
    fn count(&mut self, waited: Duration, came: usize) -> Result<(), ureq::Error> {
        self.waited += waited;
        self.came += came;
        if self.waited < 2 * self.patience.silence {
            return Ok(());
        }
        let (waited, came) = (std::mem::take(&mut self.waited), std::mem::take(&mut self.came));
        if came as f64 >= LEAST * waited.as_secs_f64() {
            return Ok(());
        }
        let what = format!("only {came} bytes came in {:.1} s", waited.as_secs_f64());
        Err(ureq::Error::Io(io::Error::new(io::ErrorKind::TimedOut, what)))
    }
}

impl<T: Transport> Transport for Patient<T> {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.inner.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), ureq::Error> {
        // What comes now answers another question.
        (self.waited, self.came) = (Duration::ZERO, 0);
        let after = self.patience.silence.min(*timeout.after).into();
        self.inner.transmit_output(amount, NextTimeout { after, ..timeout })
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, ureq::Error> {
        let started = Instant::now();
        let before = self.inner.buffers().input().len();
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
                Ok(true) => {
                    let came = self.inner.buffers().input().len().saturating_sub(before);
                    self.count(started.elapsed(), came)?;
                    return Ok(true);
                }
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
