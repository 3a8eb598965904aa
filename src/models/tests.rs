use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::ModelState::{Failed, Loaded as There, Unloaded};
use super::*;
use crate::backend::select::MemoryNeed;

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models").join(name)
}

/// An offer of a fixture by its name, and how often its files were opened.
fn offer(name: &str) -> (Offer, Arc<AtomicUsize>) {
    let opened = Arc::new(AtomicUsize::new(0));
    let (count, path) = (Arc::clone(&opened), fixture(name));
    let open: Open = Arc::new(move || {
        count.fetch_add(1, Ordering::Relaxed);
        ModelFiles::open(&path)
    });
    (
        Offer {
            name: name.into(),
            aliases: vec![format!("{name}:latest")],
            size: None,
            open,
            options: options(),
        },
        opened,
    )
}

/// On the CPU, with few pages: what a model takes is then known.
fn options() -> LoadOptions {
    let backend = crate::BackendRequest::Cpu;
    LoadOptions { backend, kv_memory: Some(KV), context: Some(64), ..LoadOptions::default() }
}

const KV: u64 = 1 << 20;
const THREE: [&str; 3] = ["llama-bf16", "granite-bf16", "gemma2-caps"];

/// Models of these fixtures with `memory`, and how often each was opened.
fn models(options: ModelsOptions) -> (Models, Vec<Arc<AtomicUsize>>) {
    let models = Models::new(ModelsOptions { threads: Some(1), ..options }).unwrap();
    let opened = THREE.map(|name| {
        let (offer, opened) = offer(name);
        models.offer(offer).unwrap();
        opened
    });
    (models, opened.into())
}

fn states(models: &Models) -> Vec<ModelState> {
    models.list().iter().map(|status| status.state).collect()
}

/// Waits until the models are as wanted.
#[track_caller]
fn becomes(models: &Models, wanted: &[ModelState]) {
    let begun = Instant::now();
    while states(models) != wanted {
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}, not {wanted:?}", states(models));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The greedy text of a model.
fn text(model: &Model) -> Vec<u32> {
    let options = crate::Options { max_tokens: Some(8), ignore_eos: true, ..crate::Options::default() };
    let tokens = model.generate_tokens(vec![1, 2, 3], &options).unwrap();
    tokens.filter_map(|piece| piece.unwrap().token).collect()
}

/// What the model takes at least, beside what is kept free.
fn least(name: &str) -> u64 {
    let files = ModelFiles::open(&fixture(name)).unwrap();
    let need = files.memory_need(files.memory_setting(LlmBackendKind::Cpu, &options()));
    MemoryNeed { kv: KV, ..need }.total() - MemoryNeed::RESERVE
}

#[test]
fn each_is_loaded_when_it_is_asked_for_and_once() {
    let (models, opened) = models(ModelsOptions::default());
    assert_eq!(states(&models), [Unloaded; 3]);
    assert_eq!(models.find(None).as_deref(), Some("llama-bf16"));
    assert_eq!(models.find(Some("gemma2-caps:latest")).as_deref(), Some("gemma2-caps"));
    assert_eq!(models.find(Some("another")), None);
    assert!(models.lease("granite-bf16", Keep::Usual).is_none());
    let leases: Vec<Lease> = std::thread::scope(|scope| {
        let asked: Vec<_> =
            (0..4).map(|_| scope.spawn(|| models.get("granite-bf16", Keep::Usual).unwrap())).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    assert_eq!(states(&models), [Unloaded, There, Unloaded]);
    assert_eq!(models.list()[1].leases, 4);
    assert_eq!(opened.iter().map(|count| count.load(Ordering::Relaxed)).collect::<Vec<_>>(), [0, 1, 0]);
    let alone = Model::load_with(ModelFiles::open(&fixture("granite-bf16")).unwrap(), options());
    assert_eq!(text(leases[0].model()), text(&alone.unwrap()));
    drop(leases);
    assert_eq!(models.list()[1].leases, 0);
    let unknown = models.get("another", Keep::Usual).unwrap_err().to_string();
    assert_eq!(unknown, "\"another\": there is no model of this name");
}

#[test]
fn the_one_that_was_not_used_the_longest_gives_way() {
    // Room for two of them, whichever.
    let mut sizes = THREE.map(least);
    sizes.sort_unstable();
    let memory = MemoryNeed::RESERVE + sizes[1] + sizes[2];
    let (models, opened) = models(ModelsOptions { memory: Some(memory), ..ModelsOptions::default() });
    drop(models.get(THREE[0], Keep::Usual).unwrap());
    let second = models.get(THREE[1], Keep::Usual).unwrap();
    drop(second);
    // Used again: the second is now the one that goes.
    drop(models.get(THREE[0], Keep::Usual).unwrap());
    drop(models.get(THREE[2], Keep::Usual).unwrap());
    let there = states(&models);
    assert_eq!(there, [There, Unloaded, There]);
    drop(models.get(THREE[1], Keep::Usual).unwrap());
    assert_eq!(opened[1].load(Ordering::Relaxed), 2);
}

#[test]
fn one_in_use_leaves_when_it_is_not_and_nobody_is_lost() {
    let largest = THREE.map(least).into_iter().max().unwrap();
    // Room for one alone.
    let memory = MemoryNeed::RESERVE + largest;
    let (models, _) = models(ModelsOptions { memory: Some(memory), ..ModelsOptions::default() });
    let busy = models.get(THREE[0], Keep::Usual).unwrap();
    std::thread::scope(|scope| {
        let other = scope.spawn(|| models.get(THREE[1], Keep::Usual).unwrap().name().to_owned());
        // Who asks for the busy one while another waits for its room comes after that.
        while models.lease(THREE[0], Keep::Usual).is_some() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let again = scope.spawn(|| models.get(THREE[0], Keep::Usual).unwrap().name().to_owned());
        std::thread::sleep(Duration::from_millis(50));
        assert!(!other.is_finished() && !again.is_finished());
        assert_eq!(text(busy.model()).len(), 8);
        drop(busy);
        assert_eq!(other.join().unwrap(), THREE[1]);
        assert_eq!(again.join().unwrap(), THREE[0]);
    });
    becomes(&models, &[There, Unloaded, Unloaded]);
}

/// Models of these names with so many times [`KV`], of which the first is in use while the second waits for its room; the third has
/// room beside the first.
fn one_waits(kvs: [u64; 3], then: impl FnOnce(&Models, Lease)) {
    let kv = |of: u64| LoadOptions { kv_memory: Some(of * KV), ..options() };
    let base = least(THREE[0]) - KV;
    let memory = MemoryNeed::RESERVE + 2 * base + (kvs[0] + kvs[2]) * KV;
    let options = ModelsOptions { memory: Some(memory), threads: Some(1), ..ModelsOptions::default() };
    let models = Models::new(options).unwrap();
    for (name, of) in ["busy", "waits", "small"].into_iter().zip(kvs) {
        let (offer, _) = offer(THREE[0]);
        let (name, aliases) = (name.to_owned(), Vec::new());
        models.offer(Offer { name, aliases, options: kv(of), ..offer }).unwrap();
    }
    let busy = models.get("busy", Keep::Usual).unwrap();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| models.get("waits", Keep::Usual).unwrap().name().to_owned());
        while models.lease("busy", Keep::AsBefore).is_some() {
            std::thread::sleep(Duration::from_millis(5));
        }
        then(&models, busy);
        assert_eq!(waits.join().unwrap(), "waits");
    });
}

/// Loads the small model, and has it go again.
fn load_small(models: &Models) {
    drop(models.get("small", Keep::Usual).unwrap());
    models.unload("small").unwrap();
    assert!(models.wait_unloaded("small", Duration::from_secs(60)));
}

#[test]
fn who_has_room_goes_before_who_waits_for_it() {
    // Beside the one that waits there is room for it, too: as often as it likes.
    one_waits([4, 3, 1], |models, busy| {
        (0..loads::AHEAD + 3).for_each(|_| load_small(models));
        assert_eq!(states(models)[1], ModelState::Loading);
        drop(busy);
    });
    // It takes what the other waits for: a few times, and then after it.
    one_waits([2, 3, 1], |models, busy| {
        (0..loads::AHEAD).for_each(|_| load_small(models));
        std::thread::scope(|scope| {
            let small = scope.spawn(|| models.get("small", Keep::Usual).unwrap().name().to_owned());
            std::thread::sleep(Duration::from_millis(500));
            assert!(!small.is_finished());
            assert_eq!(states(models), [There, ModelState::Loading, ModelState::Loading]);
            drop(busy);
            assert_eq!(small.join().unwrap(), "small");
        });
    });
}

#[test]
fn who_says_nothing_keeps_what_was_said() {
    let idle = Some(Duration::from_secs(3600));
    let (models, _) = models(ModelsOptions { idle_unload: idle, ..ModelsOptions::default() });
    let expires = || models.list()[0].expires_in;
    drop(models.get(THREE[0], Keep::AsBefore).unwrap());
    assert!(matches!((expires(), idle), (Some(time), Some(idle)) if time <= idle));
    drop(models.get(THREE[0], Keep::Forever).unwrap());
    let lease = models.get(THREE[0], Keep::AsBefore).unwrap();
    assert_eq!(expires(), None);
    lease.keep(Keep::Usual);
    assert_eq!(expires(), idle);
    // Whoever had it before it was to be unloaded does not keep it.
    models.unload(THREE[0]).unwrap();
    lease.keep(Keep::Forever);
    assert_eq!(expires(), Some(Duration::ZERO));
    drop(lease);
    becomes(&models, &[Unloaded; 3]);
}

#[test]
fn twenty_four_loads_lose_nobody() {
    let largest = THREE.map(least).into_iter().max().unwrap();
    let memory = Some(MemoryNeed::RESERVE + largest);
    let models = Models::new(ModelsOptions { memory, threads: Some(1), ..ModelsOptions::default() }).unwrap();
    // How many are opened at once, and how many ever were.
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for name in THREE {
        let (now, most, path) = (Arc::clone(&now), Arc::clone(&most), fixture(name));
        let open: Open = Arc::new(move || {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(5));
            let files = ModelFiles::open(&path);
            now.fetch_sub(1, Ordering::SeqCst);
            files
        });
        let (name, aliases) = (name.to_owned(), Vec::new());
        models.offer(Offer { name, aliases, size: None, open, options: options() }).unwrap();
    }
    let wanted = THREE
        .map(|name| text(&Model::load_with(ModelFiles::open(&fixture(name)).unwrap(), options()).unwrap()));
    // Each asks for another than the one that is in use, which then leaves.
    let mut held: Option<Lease> = None;
    for load in 0..24 {
        let name = THREE[load % 3];
        let lease = std::thread::scope(|scope| {
            let asks = scope.spawn(|| models.get(name, Keep::Usual).unwrap());
            if let Some(held) = held.take() {
                while models.lease(held.name(), Keep::AsBefore).is_some() {
                    std::thread::sleep(Duration::from_millis(1));
                }
                assert_eq!(text(held.model()), wanted[(load + 2) % 3]);
            }
            asks.join().unwrap()
        });
        assert_eq!((lease.name(), text(lease.model())), (name, wanted[load % 3].clone()));
        held = Some(lease);
    }
    drop(held);
    models.unload(THREE[2]).unwrap();
    becomes(&models, &[Unloaded; 3]);
    assert_eq!(models.moves(), ModelMoves { loads: 24, unloads: 24 });
    // Several who ask at once.
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (models, wanted) = (&models, &wanted);
            scope.spawn(move || {
                for round in 0..8 {
                    let which = (thread + round) % 3;
                    let lease = models.get(THREE[which], Keep::Usual).unwrap();
                    assert_eq!(text(lease.model()), wanted[which]);
                }
            });
        }
    });
    assert!((3..=24).contains(&(models.moves().loads - 24)), "{:?}", models.moves());
    assert!(models.list().iter().all(|status| status.leases == 0 && status.state != Failed));
    assert_eq!(most.load(Ordering::SeqCst), 1);
}

/// Takes its model on the thread that loads, before another is looked at.
struct Told {
    loading: Arc<AtomicUsize>,
    lease: mpsc::Sender<Result<Lease>>,
}

impl Waiter for Told {
    fn is_gone(&self) -> bool {
        false
    }

    fn give(self: Box<Self>, lease: Result<Lease>) {
        self.loading.fetch_sub(1, Ordering::SeqCst);
        let _ = self.lease.send(lease);
    }
}

#[test]
fn one_is_loaded_at_a_time() {
    let models = Models::new(ModelsOptions { threads: Some(1), ..ModelsOptions::default() }).unwrap();
    // How many are opened and not given yet, and how many ever were.
    let (loading, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for name in THREE {
        let (now, most, path) = (Arc::clone(&loading), Arc::clone(&most), fixture(name));
        let open: Open = Arc::new(move || {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(20));
            ModelFiles::open(&path)
        });
        let (name, aliases) = (name.to_owned(), Vec::new());
        models.offer(Offer { name, aliases, size: None, open, options: options() }).unwrap();
    }
    for _ in 0..3 {
        let (lease, leases) = mpsc::channel();
        for name in THREE {
            let waiter = Told { loading: Arc::clone(&loading), lease: lease.clone() };
            models.ask(name, Keep::Usual, Box::new(waiter));
        }
        drop(lease);
        let leases: Vec<Lease> = leases.into_iter().take(3).map(Result::unwrap).collect();
        // In the order in which they were asked for.
        assert_eq!(leases.iter().map(Lease::name).collect::<Vec<_>>(), THREE);
        drop(leases);
        for name in THREE {
            models.unload(name).unwrap();
            assert!(models.wait_unloaded(name, Duration::from_secs(60)));
        }
    }
    assert_eq!((loading.load(Ordering::SeqCst), most.load(Ordering::SeqCst)), (0, 1));
}

#[test]
fn an_idle_one_is_unloaded_as_was_asked() {
    let idle = Duration::from_millis(100);
    let (models, _) = models(ModelsOptions { idle_unload: Some(idle), ..ModelsOptions::default() });
    drop(models.get(THREE[0], Keep::Usual).unwrap());
    let forever = models.get(THREE[1], Keep::Forever).unwrap();
    let at_once = models.get(THREE[2], Keep::For(Duration::ZERO)).unwrap();
    becomes(&models, &[Unloaded, There, There]);
    drop((forever, at_once));
    becomes(&models, &[Unloaded, There, Unloaded]);
    std::thread::sleep(3 * idle);
    assert_eq!(states(&models), [Unloaded, There, Unloaded]);
    assert_eq!(models.list()[1].expires_in, None);
    // Whoever asks next says anew.
    drop(models.get(THREE[1], Keep::Usual).unwrap());
    becomes(&models, &[Unloaded; 3]);
}

#[test]
fn unloading_waits_for_who_uses_it() {
    let (models, _) = models(ModelsOptions::default());
    let lease = models.get(THREE[0], Keep::Usual).unwrap();
    models.unload(THREE[0]).unwrap();
    assert!(!models.wait_unloaded(THREE[0], Duration::from_secs(1)));
    assert_eq!(states(&models)[0], There);
    drop(lease);
    becomes(&models, &[Unloaded; 3]);
    drop(models.get(THREE[1], Keep::Usual).unwrap());
    models.unload(THREE[1]).unwrap();
    assert!(models.wait_unloaded(THREE[1], Duration::from_secs(60)));
    assert_eq!(states(&models), [Unloaded; 3]);
    assert!(models.unload("another").is_err());
}

#[test]
fn unloading_one_that_is_being_loaded_waits_for_who_asked() {
    let (models, _) = models(ModelsOptions::default());
    let (open, opened) = (fixture(THREE[0]), Arc::new(AtomicUsize::new(0)));
    let began = Arc::clone(&opened);
    let open: Open = Arc::new(move || {
        began.store(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(300));
        ModelFiles::open(&open)
    });
    models
        .offer(Offer { name: "slow".into(), aliases: Vec::new(), size: None, open, options: options() })
        .unwrap();
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| text(models.get("slow", Keep::Forever).unwrap().model()));
        while opened.load(Ordering::Relaxed) == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        models.unload("slow").unwrap();
        assert_eq!(asked.join().unwrap().len(), 8);
    });
    becomes(&models, &[Unloaded; 4]);
}

#[test]
fn what_is_looked_at_goes_once_nobody_does() {
    let (models, _) = models(ModelsOptions::default());
    drop(models.get(THREE[0], Keep::Usual).unwrap());
    let looked = models.list()[0].model.clone();
    models.unload(THREE[0]).unwrap();
    assert!(!models.wait_unloaded(THREE[0], Duration::from_millis(200)));
    assert_eq!(states(&models)[0], ModelState::Unloading);
    drop(looked);
    assert!(models.wait_unloaded(THREE[0], Duration::from_secs(60)));
    assert_eq!(models.get(THREE[0], Keep::Usual).unwrap().name(), THREE[0]);
}

#[test]
fn one_that_cannot_be_loaded_fails_who_asks_for_it_alone() {
    let (models, _) = models(ModelsOptions::default());
    let open: Open = Arc::new(|| ModelFiles::open(Path::new("/nonexistent")));
    let options = LoadOptions::default();
    models.offer(Offer { name: "gone".into(), aliases: Vec::new(), size: None, open, options }).unwrap();
    let error = models.get("gone", Keep::Usual).unwrap_err().to_string();
    assert!(error.starts_with("gone cannot be loaded: /nonexistent: does not exist"), "{error}");
    assert_eq!(models.get(THREE[0], Keep::Usual).unwrap().name(), THREE[0]);
    assert_eq!(states(&models), [There, Unloaded, Unloaded, Failed]);
    let reason = models.list()[3].reason.clone().unwrap();
    assert!(reason.starts_with("/nonexistent: does not exist"), "{reason}");

    // More than all may take.
    let tiny = Models::new(ModelsOptions { memory: Some(1 << 20), ..ModelsOptions::default() }).unwrap();
    tiny.offer(offer(THREE[0]).0).unwrap();
    let error = tiny.get(THREE[0], Keep::Usual).unwrap_err().to_string();
    assert!(error.ends_with(", 1.0 MB are available"), "{error}");

    // Nobody is unloaded for one that cannot fit.
    let memory = MemoryNeed::RESERVE + least(THREE[0]);
    let small = Models::new(ModelsOptions { memory: Some(memory), ..ModelsOptions::default() }).unwrap();
    small.offer(offer(THREE[0]).0).unwrap();
    let (large, _) = offer(THREE[1]);
    let options = LoadOptions { kv_memory: Some(4 * KV), ..large.options.clone() };
    small.offer(Offer { options, ..large }).unwrap();
    drop(small.get(THREE[0], Keep::Usual).unwrap());
    assert!(small.get(THREE[1], Keep::Usual).is_err());
    assert_eq!(states(&small), [There, Failed]);

    // What panics while it is loaded fails like any other.
    let open: Open = Arc::new(|| panic!("it is broken"));
    let options = LoadOptions::default();
    models.offer(Offer { name: "panics".into(), aliases: Vec::new(), size: None, open, options }).unwrap();
    let error = models.get("panics", Keep::Usual).unwrap_err().to_string();
    assert!(error.contains("loading panicked: it is broken"), "{error}");
    assert_eq!(models.get(THREE[0], Keep::Usual).unwrap().name(), THREE[0]);
}

#[test]
fn names_are_of_one_model_each() {
    let (models, _) = models(ModelsOptions::default());
    let (again, _) = offer(THREE[0]);
    assert!(models.offer(again).unwrap_err().to_string().contains("another model goes by this name"));
    let (mut other, _) = offer("llama-f16");
    other.aliases = vec!["*".into()];
    models.offer(other).unwrap();
    assert_eq!(models.find(Some("anything")).as_deref(), Some("llama-f16"));
    assert_eq!(models.find(Some(THREE[1])).as_deref(), Some(THREE[1]));
    assert_eq!((models.named("anything"), models.named(THREE[1]).as_deref()), (None, Some(THREE[1])));
}

#[test]
fn a_model_that_was_given_stays() {
    let models = Models::new(ModelsOptions::default()).unwrap();
    models.add("stories", vec!["x".into()], Model::builtin().unwrap()).unwrap();
    assert_eq!(models.get("x", Keep::For(Duration::ZERO)).unwrap().name(), "stories");
    assert!(models.unload("stories").unwrap_err().to_string().contains("it stays loaded"));
    assert_eq!(states(&models), [There]);
}

#[test]
fn those_who_wait_at_the_end_learn_it() {
    let (models, _) = models(ModelsOptions::default());
    let lease = models.get(THREE[0], Keep::Usual).unwrap();
    drop(models);
    // What is in use goes on.
    assert_eq!(text(lease.model()).len(), 8);
}

#[test]
fn models_that_compute_at_once_have_the_texts_that_they_have_alone() {
    let mlx = crate::backends()[1].there.is_ok();
    let both = [crate::BackendRequest::Cpu, crate::BackendRequest::Mlx];
    for backend in both.into_iter().take(if mlx { 2 } else { 1 }) {
        let options = LoadOptions { backend, ..options() };
        let models = Models::new(ModelsOptions { threads: Some(2), ..ModelsOptions::default() }).unwrap();
        let wanted = THREE.map(|name| {
            let (offer, _) = offer(name);
            models.offer(Offer { options: options.clone(), ..offer }).unwrap();
            let files = ModelFiles::open(&fixture(name)).unwrap();
            text(&Model::load_with(files, options.clone()).unwrap())
        });
        std::thread::scope(|scope| {
            for (name, wanted) in THREE.iter().zip(&wanted) {
                let models = &models;
                scope.spawn(move || {
                    for _ in 0..8 {
                        let lease = models.get(name, Keep::Usual).unwrap();
                        assert_eq!(
                            text(lease.model()),
                            *wanted,
                            "{name} on {}",
                            lease.model().engine().backend()
                        );
                    }
                });
            }
        });
        assert_eq!(states(&models), [There; 3]);
    }
}

#[test]
fn the_end_waits_for_one_that_is_on_its_way_out() {
    for lets_go in [true, false] {
        let (models, _) = models(ModelsOptions::default());
        drop(models.get(THREE[0], Keep::Usual).unwrap());
        let looked = models.list()[0].model.clone();
        models.unload(THREE[0]).unwrap();
        assert_eq!(states(&models), [ModelState::Unloading, Unloaded, Unloaded]);
        let started = Instant::now();
        let ends = std::thread::spawn(move || drop(models));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!ends.is_finished());
        // What never lets go is waited for so long and no longer.
        let kept = looked.filter(|_| !lets_go);
        ends.join().unwrap();
        assert_eq!(started.elapsed() < loads::UNLOADING, lets_go, "{:?}", started.elapsed());
        assert!(started.elapsed() < 3 * loads::UNLOADING);
        drop(kept);
    }
}

/// Bytes of keys and values that a model of three gets where nobody says how many.
fn kv_of_three(memory: u64, sizes: [Option<u64>; 3], sequences: usize) -> u64 {
    let models =
        Models::new(ModelsOptions { memory: Some(memory), threads: Some(1), ..ModelsOptions::default() })
            .unwrap();
    for (name, size) in THREE.iter().zip(sizes) {
        let (offer, _) = offer(name);
        let options = LoadOptions { kv_memory: None, max_sequences: Some(sequences), ..options() };
        models.offer(Offer { size, options, ..offer }).unwrap();
    }
    models.get(THREE[0], Keep::Usual).unwrap().model().info().kv_memory
}

#[test]
fn what_each_gets_where_nobody_says() {
    // What the first takes beside keys and values, and those of its context.
    let files = ModelFiles::open(&fixture(THREE[0])).unwrap();
    let need = files.memory_need(files.memory_setting(LlmBackendKind::Cpu, &options()));
    let (least, fixed) = (need.total(), need.weights + need.activations);
    let left = |share: u64| share - fixed - MemoryNeed::RESERVE;
    let size = 10 << 20;
    let had = least + 2 * size + (90 << 20);
    // All fit: what all weights leave, in equal parts.
    let many = 1 << 20;
    assert_eq!(kv_of_three(had, [Some(size); 3], many), left(least + (30 << 20)));
    // They do not fit, or nobody knows: half of what its own weights leave.
    let half = left(least + (had - least) / 2);
    assert_eq!(kv_of_three(had, [Some(size), Some(had), Some(size)], many), half);
    assert_eq!(kv_of_three(had, [Some(size), None, Some(size)], many), half);
    // No more than twice as many sequences take as run at once.
    assert_eq!(kv_of_three(had, [Some(size); 3], 3), 6 * need.kv);

    // As numbers: the size of the one that asks is what its files say, and counts as that alone.
    let entry = |size: Option<u64>| Entry {
        name: String::new(),
        aliases: Vec::new(),
        size,
        from: None,
        stage: Stage::Unloaded,
    };
    let state = |sizes: &[Option<u64>]| State {
        entries: sizes.iter().map(|&size| entry(size)).collect(),
        ..State::default()
    };
    let cases: [(&[Option<u64>], u64); 6] = [
        (&[None], 1000),
        (&[None, Some(200)], 100 + (1000 - 300) / 2),
        (&[None, Some(200), Some(100)], 100 + (1000 - 400) / 3),
        (&[None, Some(900)], 100),
        (&[None, Some(901)], 100 + 900 / 2),
        (&[None, None], 100 + 900 / 2),
    ];
    for (sizes, expected) in cases {
        assert_eq!(room::share(&state(sizes), 0, 100, 1000), expected, "{sizes:?}");
    }
}

/// Of a machine whose memory others take, too.
static AVAILABLE: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

#[test]
fn what_others_took_is_made_up_for() {
    fn available(_: LlmBackendKind) -> Option<u64> {
        Some(AVAILABLE.load(Ordering::SeqCst))
    }
    let needs = MemoryNeed::RESERVE + least(THREE[2]);
    AVAILABLE.store(10 * needs, Ordering::SeqCst);
    let models =
        Models::on(ModelsOptions { threads: Some(1), ..ModelsOptions::default() }, available).unwrap();
    THREE.iter().for_each(|name| models.offer(offer(name).0).unwrap());
    drop(models.get(THREE[0], Keep::Usual).unwrap());
    let second = models.get(THREE[1], Keep::Usual).unwrap();
    assert_eq!(states(&models), [There, There, Unloaded]);
    let memory = models.list()[0].memory.unwrap();
    assert_eq!(memory, models.list()[0].model.as_ref().unwrap().info().memory);
    assert_eq!(memory, least(THREE[0]));

    // By its count there is room for the third beside them, but others have taken it: the one that nobody uses goes.
    AVAILABLE.store(needs - 1, Ordering::SeqCst);
    let third = models.get(THREE[2], Keep::Usual).unwrap();
    assert_eq!(states(&models), [Unloaded, There, There]);
    // What is in use stays: beside it a model takes what there is.
    drop(models.get(THREE[0], Keep::Usual).unwrap());
    assert_eq!(states(&models), [There; 3]);
    drop((second, third));

    // Once all are gone, it is read anew what there is.
    THREE.iter().for_each(|name| models.unload(name).unwrap());
    becomes(&models, &[Unloaded; 3]);
    assert!(models.list().iter().all(|status| status.memory.is_none()));
    AVAILABLE.store(MemoryNeed::RESERVE + least(THREE[0]), Ordering::SeqCst);
    drop(models.get(THREE[0], Keep::Usual).unwrap());
    drop(models.get(THREE[1], Keep::Usual).unwrap());
    assert_eq!(states(&models), [Unloaded, There, Unloaded]);
}
