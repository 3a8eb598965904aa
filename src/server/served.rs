//! What one request is answered with: its model, and what all requests share.

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::app::App;
use super::failure::{Failure, thread_failed};
use super::places::{Places, QueuePlace};
use super::store::Caller;
use crate::alloc::give_back;
use crate::error::Result;
use crate::model::Model;
use crate::models::{Keep, Lease};

/// What one request is answered with: its model, which stays loaded until the answer is out, and what all requests share.
pub(crate) struct Served {
    app: Arc<App>,
    pub model: Model,
    /// The name that the model goes by.
    pub name: String,
    /// The name by which the client asked.
    pub called: String,
    /// What makes answers with one seed equal.
    pub fingerprint: String,
    /// When the request came.
    pub asked: Instant,
    /// How long it waited for its model.
    pub load: Duration,
    /// How long the model is to stay.
    pub keep: Keep,
    places: Arc<Places>,
    caller: Caller,
    /// Bytes of the request's body.
    body: usize,
    lease: Lease,
}

/// Bytes of a body whose texts are long: on its way to tokens the library makes of one some hundred times as much.
const LONG: usize = 1 << 20;
/// Work on a long text after which memory goes back: the parts of it were small, and the allocator keeps what is free among others.
const LARGE: Duration = Duration::from_millis(100);

impl Deref for Served {
    type Target = App;

    fn deref(&self) -> &App {
        &self.app
    }
}

impl Served {
    /// For a request that came at `asked`, whose client calls the model `called`, by which it may mean an adapter of it.
    ///
    /// # Errors
    /// 404 where the model has no such adapter.
    pub fn new(
        app: &Arc<App>,
        lease: Lease,
        (called, adapter): (Option<String>, Option<String>),
        keep: Keep,
        asked: Instant,
    ) -> Result<Self, Failure> {
        let name = lease.name().to_owned();
        let model = app.adapted(lease.model(), adapter.as_deref(), called.as_deref())?;
        let kind = model.info().selection.kind.name();
        let places = app.places_of(&name);
        let version = env!("CARGO_PKG_VERSION");
        let fingerprint = match model.adapter() {
            Some(adapter) => format!("backstop-{version}-{kind}-{}", &adapter.key[..8]),
            None => format!("backstop-{version}-{kind}"),
        };
        Ok(Self {
            app: Arc::clone(app),
            called: called.unwrap_or_else(|| name.clone()),
            fingerprint,
            model,
            name,
            asked,
            load: Duration::ZERO,
            keep,
            places,
            caller: Caller::default(),
            body: 0,
            lease,
        })
    }

    /// Of a request that came with a key, and a body of so many bytes.
    pub fn of(self, caller: &Caller, body: usize) -> Self {
        Self { caller: caller.clone(), model: self.model.asked_by(caller.0.clone()), body, ..self }
    }

    /// After its model was waited for.
    pub fn waited(self) -> Self {
        Self { load: self.asked.elapsed(), ..self }
    }

    /// Has the model stay for as long as the request said.
    pub fn keep_model(&self) {
        self.lease.keep(self.keep);
    }

    /// The bytes of the text of a token.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Ok(tokenizer) = self.model.tokenizer() else { return Vec::new() };
        match tokenizer.token_bytes(id) {
            Ok(bytes) => bytes.unwrap_or_default(),
            // Such a token has no bytes of its own: these are those that it has alone.
            Err(_) => tokenizer.decode(&[id]).unwrap_or_default().into_bytes(),
        }
    }

    /// Does `work` on a thread where it may take its time: making tokens of text, and text of messages. Long texts have one, for
    /// which they take turns.
    pub async fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Model) -> Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        self.apart_with(0, work).await
    }

    /// The same with texts of so many bytes that the body does not have.
    pub async fn apart_with<T: Send + 'static>(
        &self,
        more: usize,
        work: impl FnOnce(&Model) -> Result<T> + Send + 'static,
    ) -> Result<T, Failure> {
        let is_long = self.body.saturating_add(more) >= LONG;
        let turns = if is_long { &self.long } else { &self.encoders };
        let turn = turns.acquire(&self.caller).await.ok_or_else(thread_failed)?;
        let model = self.model.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let started = Instant::now();
            let done = work(&model);
            if is_long && started.elapsed() >= LARGE {
                give_back();
            }
            done
        });
        Ok(done.await.map_err(|_| thread_failed())??)
    }

    /// Places for `count` sequences.
    ///
    /// # Errors
    /// 429 while there are not as many; 400 where there never are.
    pub fn places(&self, count: usize) -> Result<Vec<QueuePlace>, Failure> {
        self.take(&self.places, count, &self.caller)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::*;
    use crate::models::{Models, ModelsOptions};

    #[tokio::test]
    async fn long_texts_take_turns_and_short_ones_do_not_wait_for_them() {
        let models = Models::new(ModelsOptions::default()).unwrap();
        models.add("tiny", Vec::new(), Model::builtin().unwrap()).unwrap();
        let app = Arc::new(App::new(models, Options::default(), true));
        let asked = |body: usize| {
            let lease = app.models.lease("tiny", Keep::Usual).unwrap();
            let served = Served::new(&app, lease, (None, None), Keep::Usual, Instant::now()).ok().unwrap();
            served.of(&Caller::default(), body)
        };
        let [short, long] = [asked(LONG / 2), asked(LONG)];
        let turn = app.long.acquire(&Caller::default()).await.unwrap();
        let work = |_: &Model| Ok(());
        assert!(short.apart(work).await.is_ok());
        let (mut body, mut stored) = (Box::pin(long.apart(work)), Box::pin(short.apart_with(LONG / 2, work)));
        for waits in [&mut body as &mut (dyn Future<Output = Result<(), Failure>> + Unpin), &mut stored] {
            assert!(tokio::time::timeout(Duration::from_millis(20), waits).await.is_err());
        }
        drop(turn);
        assert!(body.await.is_ok() && stored.await.is_ok());
    }
}
