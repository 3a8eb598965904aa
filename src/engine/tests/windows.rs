//! Layers with windows: what lies behind is given back, costs nothing, and changes no bit of what comes after it.

use super::kinds::{cut, whole};
use super::*;

/// Windows in five of six layers, and in all of them; they see 7 and 8 keys.
const MODELS: [&str; 2] = ["gemma3-pattern", "mistral-window"];

#[test]
fn what_is_given_back_changes_no_bit() {
    for model in MODELS {
        let mut rig = Rig::new(model, LlmBackendKind::Cpu, 1 << 13, cut());
        let tokens = rig.prompt(1, 700);
        let asked = rig.score(tokens.clone(), 0..700);
        let rows = rig.rows(&asked).unwrap();
        assert!(rows == whole(model, LlmBackendKind::Cpu, &tokens).logits, "{model}");
    }
}

/// A budget that holds a long sequence by its windows alone: the turns count its bytes by hand.
#[test]
fn a_sequence_costs_what_its_windows_hold() {
    for model in MODELS {
        let mut rig = Rig::new(model, LlmBackendKind::Cpu, 1 << 13, cut());
        let cost = rig.budget.cost;
        let pages = 1000_usize.next_multiple_of(PAGE) as u64;
        assert_eq!(cost.of_sequence(1000), pages * cost.token + cost.held as u64 * cost.windowed);
        // The window, the page behind it, a chunk, and the rest of a page at either end.
        assert_eq!((cost.held, cost.window.is_some()), (3 * PAGE, true));
        assert_eq!(
            cost.tokens_in(cost.of_sequence(1000)),
            if cost.token == 0 { usize::MAX / PAGE * PAGE } else { pages as usize }
        );

        let bytes = cost.of_sequence(1000);
        rig =
            Rig::new(model, LlmBackendKind::Cpu, (bytes / (cost.token + cost.windowed)) as usize + 1, cut());
        assert!(rig.budget.bytes < 1000 * (cost.token + cost.windowed) * 2 / 3);
        for seed in [1, 2] {
            let mut asked = rig.ask(rig.prompt(seed, 990), 10);
            let load = rig.turn();
            assert_eq!((load.running, load.kv.reserved), (1, bytes), "{model}");
            rig.finish(&mut asked);
            assert_eq!(asked.tokens.len(), 10);
            // Its end is kept, and a turn behind it begins there, but for a page that there is no room to copy.
            let turn = [&rig.prompt(seed, 990)[..], &asked.tokens].concat();
            let mut next = rig.ask(turn, 1);
            rig.finish(&mut next);
            assert_eq!(next.cached(), 999 / PAGE * PAGE, "{model}");
        }
        let load = rig.turn();
        assert!(load.kv.evicted > 0 && load.kv.reserved == 0 && load.kv.shared == 0, "{load:?}");
    }
}

#[test]
fn sequences_begin_within_and_behind_what_others_passed_by() {
    for model in MODELS {
        let mut rig = Rig::new(model, LlmBackendKind::Cpu, 1 << 14, cut());
        let system = rig.prompt(1, 300);
        let ask = |end: &[u32]| [&system[..], end].concat();
        let mut first = rig.ask(ask(&[1, 2, 3]), 160);
        while rig.worker.cached(303) < 400 {
            rig.turn();
        }
        // While the first one runs, from its prompt, which it has long passed by: whole pages alone are shared.
        let mut second = rig.ask(ask(&[4, 5, 6]), 5);
        let load = rig.turn();
        assert_eq!(load.running, 2);
        rig.finish(&mut second);
        assert_eq!(second.cached(), 300 / PAGE * PAGE, "{model}");
        assert_eq!(second.tokens, Rig::alone(model, LlmBackendKind::Cpu, ask(&[4, 5, 6]), 5), "{model}");
        // Within a page of another, whose tokens part there.
        let other = [&system[..150], &rig.prompt(3, 40)].concat();
        let mut part = rig.ask(other.clone(), 10);
        rig.finish(&mut part);
        assert_eq!(part.cached(), 150, "{model}");
        assert_eq!(part.tokens, Rig::alone(model, LlmBackendKind::Cpu, other, 10), "{model}");
        rig.finish(&mut first);
        let alone = Rig::alone(model, LlmBackendKind::Cpu, ask(&[1, 2, 3]), 160);
        assert_eq!(first.tokens, alone, "{model}");
        // What it generated is passed by, too, and kept without panes; its end has them.
        let mut next = rig.ask([ask(&[1, 2, 3]), alone[..70].to_vec(), vec![9]].concat(), 1);
        rig.finish(&mut next);
        assert_eq!(next.cached(), 256, "{model}");
    }
}

/// A sequence that ends within a page whose pane is gone does not bring its part of the pane for the whole page.
#[test]
fn part_of_a_pane_is_none_of_a_whole_page() {
    for model in MODELS {
        let mut rig = Rig::new(model, LlmBackendKind::Cpu, 1 << 14, cut());
        let prompt = rig.prompt(1, 100);
        let mut long = rig.ask(prompt.clone(), 300);
        rig.finish(&mut long);
        let mut short = rig.ask(prompt.clone(), 60);
        rig.finish(&mut short);
        assert_eq!(short.tokens, long.tokens[..60], "{model}");
        let further = [&prompt[..], &long.tokens[..200]].concat();
        let mut next = rig.ask(further.clone(), 5);
        rig.finish(&mut next);
        assert_eq!(next.tokens, Rig::alone(model, LlmBackendKind::Cpu, further, 5), "{model}");
        assert_eq!(next.cached(), 128, "{model}");
    }
}
