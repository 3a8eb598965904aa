//! stories260k: the greedy text that its author published, to the letter.

use backstop::Options;

use crate::harness::{backends, load, options, stories260k};

#[test]
fn stories260k_tells_its_published_story() {
    let Some(path) = stories260k() else { return };
    let readme = std::fs::read_to_string(path.join("README.md")).unwrap();
    let published = readme.split("```\n").nth(1).expect("the README quotes the text").trim_end_matches('\n');
    for kind in backends() {
        let model = load(&path, options(kind));
        let asked = Options { max_tokens: Some(200), ..Options::default() };
        let generation = model.generate("Once upon a time", &asked).unwrap();
        assert_eq!(generation.prompt(), [1, 403, 407, 261, 378]);
        assert_eq!(generation.text().unwrap(), published, "on {kind}");
    }
}
