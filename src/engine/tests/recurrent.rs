//! Layers that keep a state of fixed size: sequences begin where a copy of it was kept, with the bits of those that compute it all.

use super::kinds::{cut, whole};
use super::*;

const MODEL: &str = "qwen3_5-delta";

#[test]
fn a_turn_begins_behind_the_last_and_the_same_prompt_before_its_last_token() {
    for kind in backends() {
        let mut rig = Rig::new(MODEL, kind, 4096, EngineOptions::default());
        let prompt = rig.prompt(1, 200);
        let mut first = rig.ask(prompt.clone(), 10);
        rig.finish(&mut first);
        assert_eq!(
            (first.cached(), &first.tokens),
            (0, &Rig::alone(MODEL, kind, prompt.clone(), 10)),
            "{kind}"
        );
        let mut again = rig.ask(prompt.clone(), 10);
        rig.finish(&mut again);
        assert_eq!((again.cached(), &again.tokens), (199, &first.tokens), "{kind}");

        let turn = [&prompt[..], &first.tokens, &rig.prompt(2, 30)].concat();
        let mut next = rig.ask(turn.clone(), 10);
        rig.finish(&mut next);
        assert_eq!(
            (next.cached(), &next.tokens),
            (209, &Rig::alone(MODEL, kind, turn.clone(), 10)),
            "{kind}"
        );

        // One that parts from it where nothing was kept begins at the last place before.
        let other = [&turn[..220], &rig.prompt(3, 40)].concat();
        let mut part = rig.ask(other.clone(), 10);
        rig.finish(&mut part);
        assert_eq!((part.cached(), part.tokens), (209, Rig::alone(MODEL, kind, other, 10)), "{kind}");
        let load = rig.turn();
        assert_eq!((load.kv.reserved, load.kv.shared), (0, 0));
    }
}

#[test]
fn an_edited_message_begins_behind_the_one_before_it() {
    for kind in backends() {
        let mut rig = Rig::new(MODEL, kind, 4096, cut());
        let end = rig.vocab - 1;
        rig.marks = vec![end];
        // Messages of other tokens, each with its end.
        let message = |rig: &Rig, seed: u64, len: usize| -> Vec<u32> {
            rig.prompt(seed, len).into_iter().map(|token| token % end).chain([end]).collect()
        };
        let [system, question, edited] =
            [(1, 90), (2, 75), (3, 50)].map(|(seed, len)| message(&rig, seed, len));
        let header = [1, 2, 3];
        let ask = |rig: &mut Rig, messages: &[&[u32]]| {
            let prompt = [&messages.concat()[..], &header].concat();
            let mut asked = rig.ask(prompt.clone(), 5);
            rig.finish(&mut asked);
            assert_eq!(asked.tokens[0], Rig::alone(MODEL, kind, prompt, 1)[0], "{kind}");
            asked.cached()
        };
        assert_eq!(ask(&mut rig, &[&system, &question]), 0);
        // The last message is another.
        assert_eq!(ask(&mut rig, &[&system, &edited]), system.len(), "{kind}");
        // What a model thought is not said again: the answer stands behind the question.
        let answer = message(&rig, 4, 20);
        assert_eq!(ask(&mut rig, &[&system, &question, &answer]), system.len() + question.len(), "{kind}");
    }
}

#[test]
fn places_where_states_are_kept_change_no_bit() {
    for chunk in [7, 64, 512] {
        let options = EngineOptions { prefill_chunk: chunk, step_tokens: chunk, ..EngineOptions::default() };
        let mut rig = Rig::new(MODEL, LlmBackendKind::Cpu, 1 << 13, options);
        let tokens = rig.prompt(1, 300);
        let all = whole(MODEL, LlmBackendKind::Cpu, &tokens).logits;
        for first in [200, 299, 64, 10] {
            let asked = rig.score(tokens.clone(), first..300);
            let rows = rig.rows(&asked).unwrap();
            assert!(rows == all[first..], "from {first} on, chunks of {chunk}");
        }
        // Scores were kept where their first rows begin.
        let load = rig.turn();
        assert_eq!((load.kv.hits, load.kv.hit_tokens), (1, 200));
    }
}

/// Several of one prompt, at the same time, and with hardly any memory: whoever has to compute anew gets the same.
#[test]
fn neighbours_and_want_of_memory_change_no_token() {
    for kind in backends() {
        let mut rig = Rig::new(MODEL, kind, 1024, cut());
        let system = rig.prompt(1, 120);
        let prompts: Vec<Vec<u32>> =
            (0..6).map(|i| [&system[..], &rig.prompt(10 + i, 60)].concat()).collect();
        let mut asked: Vec<Asked> = prompts.iter().map(|prompt| rig.ask(prompt.clone(), 12)).collect();
        asked.iter_mut().for_each(|asked| rig.finish(asked));
        for (asked, prompt) in asked.iter().zip(&prompts) {
            assert_eq!(asked.tokens, Rig::alone(MODEL, kind, prompt.clone(), 12), "{kind}");
        }
        for prompt in &prompts {
            let mut again = rig.ask(prompt.clone(), 12);
            rig.finish(&mut again);
            assert_eq!(again.tokens, Rig::alone(MODEL, kind, prompt.clone(), 12), "{kind}");
        }
        let load = rig.turn();
        assert!(load.kv.evicted > 0 && load.kv.reserved == 0 && load.kv.shared == 0, "{kind} {load:?}");
    }
}
