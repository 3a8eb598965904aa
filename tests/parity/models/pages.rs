//! What a sequence takes over from another: the logits behind it are those of one that computed it all, on each backend.

use backstop::LoadOptions;
use backstop::backend::LlmBackendKind;
use backstop::backend::batch::Batch;
use backstop::backend::kv::{KvType, PAGE};
use backstop::forward::step::SequenceState;

use crate::harness::{backends, close, load, options, root};
use crate::tolerance;

const LEN: usize = 150;

#[test]
fn logits_behind_shared_pages_are_those_of_a_sequence_of_its_own() {
    for name in ["llama-bf16", "llama-f16", "llama-bias", "mistral-window", "gemma2-caps", "phi-partial"] {
        let path = root().join("tests/fixtures/models").join(name);
        for kind in backends() {
            for kv_type in [None, Some(KvType::Q8), Some(KvType::Q4)] {
                let model = load(&path, LoadOptions { kv_type, ..options(kind) });
                let (dtype, vocab) = (model.info().dtype, model.info().config.vocab_size);
                let tokens: Vec<u32> = (0..LEN).map(|i| ((i * 7 + i * i % 5) % vocab) as u32).collect();
                let results = model
                    .engine()
                    .with(move |runtime| {
                        let step = |state: &mut SequenceState, start: usize, ids: &[u32]| {
                            let mut batch = Batch::of(&[(start, ids)]);
                            batch.outputs = (0..ids.len()).collect();
                            let logits = runtime.step(&batch, std::slice::from_mut(state)).unwrap();
                            (0..ids.len()).map(|row| logits.row(row).to_vec()).collect::<Vec<_>>()
                        };
                        let mut first = runtime.sequence(LEN);
                        let whole = step(&mut first, 0, &tokens);
                        let pages = runtime.pages(&first, 0..LEN.div_ceil(PAGE)).unwrap().unwrap();
                        // What becomes of the first changes nothing.
                        first.kv.truncate(30);
                        step(&mut first, 30, &tokens[90..]);
                        let of = |len: usize| {
                            let pages = &pages[..len.div_ceil(PAGE)];
                            let mut state = runtime.restore(LEN, &tokens[..len], pages, None).unwrap();
                            assert_eq!(state.kv.len(), len);
                            let rows = step(&mut state, len, &tokens[len..]);
                            (len, rows, whole[len..].to_vec())
                        };
                        [1, 63, 64, 65, 128, LEN - 1].map(of)
                    })
                    .unwrap();
                for (len, got, wanted) in results {
                    let what = format!("{name} on {kind}, cache in {kv_type:?}, {len} shared");
                    // The same backend in other shapes. A code may be the neighbour of that of the first.
                    let (bound, rms) = match kv_type {
                        _ if kind == LlmBackendKind::Cpu => (0.0, 0.0),
                        None => (tolerance::logits(dtype), tolerance::logits_rms(dtype)),
                        Some(kv_type) => {
                            (f32::INFINITY, tolerance::quantized_cache_parity(dtype, kv_type, false))
                        }
                    };
                    let (_, mean) = close(&what, &got, &wanted, bound);
                    assert!(mean <= rms, "{what}: {mean:.2e} in the mean");
                }
                assert!(model.engine().report().is_clean());
            }
        }
    }
}
