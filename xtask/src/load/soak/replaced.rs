//! A model whose file becomes another's while it is served.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::kinds;
use super::plan::Plan;
use crate::clients::target;
use crate::util::root;

/// How often the file changes.
const PAUSE: Duration = Duration::from_millis(200);

/// What becomes of the file that is served, the time of that number. Cutting it short in place is another such function.
type Change = fn(&Path, &[u8], u64) -> Result<()>;

/// The model's file is replaced by others, which are written under another name and renamed over it.
pub fn model_replaced() -> Result<Plan> {
    changed("replaced", renamed)
}

/// A soak beside `change`, of a copy of the built-in model.
fn changed(name: &str, change: Change) -> Result<Plan> {
    let home = copy(name)?;
    let file = home.join("model.safetensors");
    let bytes = fs::read(&file)?;
    let mut plan = kinds::mixed();
    plan.model = Some(home.to_string_lossy().into_owned());
    plan.beside = Some(Box::new(move |done: &AtomicBool| {
        let mut number = 0;
        while !done.load(Ordering::Relaxed) {
            change(&file, &bytes, number)
                .with_context(|| format!("change {number} of {}", file.display()))?;
            number += 1;
            thread::sleep(PAUSE);
        }
        fs::remove_dir_all(&home)?;
        ensure!(number > 0, "the model was never changed");
        Ok(())
    }));
    Ok(plan)
}

/// The built-in model in a directory of this process.
fn copy(name: &str) -> Result<PathBuf> {
    let root = root()?;
    let home = target(&root).join("load").join(format!("{name}-{}", std::process::id()));
    fs::create_dir_all(&home)?;
    for entry in fs::read_dir(root.join("assets/stories"))? {
        let path = entry?.path();
        fs::copy(&path, home.join(path.file_name().context("no name")?))?;
    }
    Ok(home)
}

/// In turn other weights of the same shapes, no model at all, nothing, and what was there.
fn renamed(file: &Path, bytes: &[u8], number: u64) -> Result<()> {
    let mut other = bytes.to_vec();
    match number % 4 {
        // Behind the header, whose length its first bytes are.
        0 => {
            let header = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length) as usize) + 8;
            other.iter_mut().skip(header).for_each(|byte| *byte ^= 0x55);
        }
        1 => other.fill(b'x'),
        2 => other.clear(),
        _ => {}
    }
    let new = file.with_extension("new");
    fs::write(&new, other)?;
    fs::rename(&new, file)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole() {
        let file = std::env::temp_dir().join(format!("backstop-replaced-{}", std::process::id()));
        let bytes = [&2u64.to_le_bytes()[..], b"{}", &[1, 2, 3]].concat();
        fs::write(&file, &bytes).unwrap();
        renamed(&file, &bytes, 0).unwrap();
        assert_eq!(fs::read(&file).unwrap(), [&bytes[..10], &[0x54, 0x57, 0x56]].concat());
        renamed(&file, &bytes, 2).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"");
        renamed(&file, &bytes, 3).unwrap();
        assert_eq!(fs::read(&file).unwrap(), bytes);
        fs::remove_file(&file).unwrap();
    }
}
