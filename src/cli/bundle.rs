//! `backstop bundle`: this program and a model in one executable; and what such a program does when it is started.

use std::ffi::OsString;
use std::fs::File;
use std::hint::black_box;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail, ensure};
use backstop::ModelFiles;
use backstop::backend::select::{BackendRequest, Bytes};
use backstop::bundle::{ALIGN, Bundle, Member, beside, reader};
use backstop::hub;
use backstop::weights::Access;
use backstop::weights::writers::Output;
use clap::CommandFactory;
use sha2::{Digest, Sha256};

use super::args::{Args, BundleArgs};
use super::progress::Progress;
use super::state::Checked;
use super::{Usage, names, term};

/// What a program says of itself: behind the words, the bytes of the whole file where a model is behind it, else 0. It is
/// changed in the copy, so that one that was cut short is known for what it was.
#[used]
static MARK: [u8; 40] = *b"backstop, and with model, bytes:\0\0\0\0\0\0\0\0";
/// Where the number is in it.
const NUMBER: usize = 32;

/// Bytes that this program should have with the model behind it; nothing where it has none.
fn marked() -> Option<u64> {
    let mark = black_box(&MARK);
    let number = mark[NUMBER..].try_into().map_or(0, u64::from_le_bytes);
    (number > 0).then_some(number)
}

/// This program's file and the model behind it, where there is one.
///
/// # Errors
/// A bundle that was cut, lengthened or damaged.
pub fn own() -> anyhow::Result<Option<(PathBuf, Bundle)>> {
    let Some(bytes) = marked() else { return Ok(None) };
    let path = std::env::current_exe().context("cannot find this program's file, which has its model")?;
    let here = std::fs::metadata(&path).with_context(|| format!("{}", path.display()))?.len();
    if here != bytes {
        bail!(
            "{}: has {here} of {bytes} bytes: get the bundle anew, or bundle the model anew",
            path.display()
        );
    }
    let bundle = Bundle::open(&path)?;
    let bundle =
        bundle.with_context(|| format!("{}: its end is damaged: bundle the model anew", path.display()))?;
    Ok(Some((path, bundle)))
}

/// The model that is taken where none is named: that of the bundle, else the built-in one.
pub fn default_model(access: Access) -> anyhow::Result<ModelFiles> {
    Ok(match own()? {
        Some((path, bundle)) => ModelFiles::open_by(&whole(&path, &bundle)?, access)?,
        None => ModelFiles::builtin()?,
    })
}

/// The same, to be looked at and not run.
pub fn default_files() -> anyhow::Result<ModelFiles> {
    Ok(match own()? {
        Some((path, bundle)) => ModelFiles::open(&path.join(bundle.model))?,
        None => ModelFiles::builtin()?,
    })
}

/// The path of a bundle's model, all of whose bytes are what was written. They are read through once for each version of the file,
/// which a line on a terminal tells of.
///
/// # Errors
/// As [`verify`].
pub fn whole(path: &Path, bundle: &Bundle) -> anyhow::Result<PathBuf> {
    let hashes: Vec<&str> = bundle.files.iter().map(|member| &*member.sha256).collect();
    let hashes = hashes.join(" ");
    let before = Checked::new(path, &hashes);
    if !before.as_ref().is_some_and(Checked::is_known) {
        let model = bundle.model.clone();
        let progress = Progress::start(move || format!("checking {model}, once"));
        verify(path, bundle)?;
        drop(progress);
        // What was written to meanwhile is another file.
        if let Some(checked) = before.filter(|before| Checked::new(path, &hashes).as_ref() == Some(before)) {
            checked.remember();
        }
    }
    Ok(path.join(&bundle.model))
}

/// Whether this program has a model behind it.
pub fn is_one() -> bool {
    marked().is_some()
}

/// Adds the command that was left out: `chat` where nothing was typed, `run` before what is none. A prompt that is a command's
/// name comes behind `--`.
pub fn with_command(mut typed: Vec<OsString>) -> Vec<OsString> {
    let is_loud = |word: &OsString| {
        let word = word.to_str().unwrap_or_default();
        word == "--verbose"
            || word.strip_prefix('-').is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c == 'v'))
    };
    let at = typed.iter().skip(1).take_while(|word| is_loud(word)).count() + 1;
    let command = match typed.get(at) {
        None => Some("chat"),
        Some(word) => {
            let own = ["help", "-h", "--help", "-V", "--version"];
            let known = word.to_str().is_some_and(|word| own.contains(&word) || is_command(word));
            (!known).then_some("run")
        }
    };
    if let Some(command) = command {
        typed.insert(at.min(typed.len()), command.into());
    }
    typed
}

/// Whether the help shows a command of this name. What else is taken for one is a word that a prompt may be.
fn is_command(word: &str) -> bool {
    let called =
        |of: &clap::Command| of.get_name() == word || of.get_visible_aliases().any(|alias| alias == word);
    Args::command().get_subcommands().any(called)
}

pub fn bundle(args: &BundleArgs) -> anyhow::Result<ExitCode> {
    if let Some(path) = &args.verify {
        let found =
            Bundle::open(path)?.with_context(|| format!("{}: has no model behind it", path.display()))?;
        verify(path, &found)?;
        let (files, bytes) = (found.files.len(), Bytes(found.bytes()));
        term::note(format_args!(
            "{}: {}, {files} files, {bytes}, all as they were written",
            path.display(),
            found.model
        ));
        return Ok(ExitCode::SUCCESS);
    }
    let (Some(model), Some(target)) = (&args.model, &args.output) else {
        return Err(Usage("a MODEL and --output FILE are what a bundle is made of".to_owned()).into());
    };
    let model = names::path(model, &args.fetch, BackendRequest::Auto)?;
    let files = ModelFiles::open(&model)?;
    let (top, sources) = sources(&files, args.model.as_deref().unwrap_or(&model))?;
    let program = Program::own()?;
    let mut total = program.bytes;
    for (_, source) in &sources {
        total = total.next_multiple_of(ALIGN).saturating_add(reader(source)?.1);
    }
    let folder = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if let Some(free) = hub::free_space(folder).filter(|&free| free < total) {
        bail!("{}: takes {}, and {} are free there", target.display(), Bytes(total), Bytes(free));
    }
    let output = Output::create(target)?;
    let progress = Progress::start({
        let target = target.display().to_string();
        move || format!("writing {target}")
    });
    let path = output.path();
    let written = write(&path, &program, top, &sources).with_context(|| format!("{}", target.display()))?;
    // What cannot be opened is no bundle.
    ModelFiles::open(&path)?;
    output.commit()?;
    drop(progress);
    term::note(format_args!(
        "{}: {} with {} in {} files, {}",
        target.display(),
        written.model,
        Bytes(written.bytes()),
        written.files.len(),
        Bytes(std::fs::metadata(target)?.len())
    ));
    Ok(ExitCode::SUCCESS)
}

/// Whether the files of a bundle are what was written.
///
/// # Errors
/// The first that is not, and files that cannot be read.
pub fn verify(path: &Path, bundle: &Bundle) -> anyhow::Result<()> {
    for member in &bundle.files {
        let (mut from, bytes) = reader(&path.join(&member.path))?;
        let mut hash = Sha256::new();
        copy(&mut from, bytes, |part| {
            hash.update(part);
            Ok(())
        })
        .with_context(|| format!("{}", path.display()))?;
        ensure!(
            hex(&hash.finalize()) == member.sha256,
            "{}: {} is damaged: get the bundle anew, or bundle the model anew",
            path.display(),
            member.path
        );
    }
    Ok(())
}

/// The model's path below the bundle's, and its files: by what they go by there, and where they are.
fn sources(files: &ModelFiles, typed: &Path) -> anyhow::Result<(String, Vec<(String, PathBuf)>)> {
    let name = files.name();
    let text = |path: &Path| -> anyhow::Result<String> {
        let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        name.with_context(|| format!("{}: its name is not UTF-8", path.display()))
    };
    if files.checkpoint.gguf().is_some() {
        // The first part of several may have no tensors.
        let tensors = files.checkpoint.tensors().map(|tensor| tensor.file());
        let mut paths: Vec<&Path> = tensors.chain([&*files.path]).collect();
        paths.sort_unstable();
        paths.dedup();
        let first = text(&files.path)?;
        // Ollama's are called by their hashes.
        if let ([one], false) = (&paths[..], first.ends_with(".gguf")) {
            let name = typed.to_string_lossy().replace(['/', ':', '\\'], "-");
            let name = format!("{}.gguf", name.trim_matches(['-', '.']));
            return Ok((name.clone(), vec![(name, one.to_path_buf())]));
        }
        let all: anyhow::Result<Vec<_>> =
            paths.into_iter().map(|path| Ok((text(path)?, path.to_owned()))).collect();
        return Ok((first, all?));
    }
    let within: Vec<String> = match inside(&files.path)? {
        Some(names) => names,
        None => hub::needed(&files.path),
    };
    ensure!(!within.is_empty(), "{}: holds no files of a model", files.path.display());
    // A link that leads elsewhere is not packed: what it leads to may be a secret.
    let all = within.into_iter().map(|path| {
        let place = beside(&files.path.join(&path))?;
        anyhow::Ok((format!("{name}/{path}"), place))
    });
    let all = all.collect::<anyhow::Result<_>>()?;
    Ok((name, all))
}

/// The files of a folder that lies in a bundle.
fn inside(folder: &Path) -> anyhow::Result<Option<Vec<String>>> {
    let Some(root) = folder.ancestors().skip(1).find(|path| path.is_file()) else { return Ok(None) };
    let bundle = Bundle::open(root)?.ok_or_else(|| anyhow!("{}: has no model behind it", root.display()))?;
    let below = folder.strip_prefix(root)?;
    let of = |member: &Member| Some(Path::new(&member.path).strip_prefix(below).ok()?.to_str()?.to_owned());
    Ok(Some(bundle.files.iter().filter_map(of).collect()))
}

/// This program without a model behind it.
struct Program {
    path: PathBuf,
    bytes: u64,
}

impl Program {
    fn own() -> anyhow::Result<Self> {
        if let Some((path, bundle)) = own()? {
            return Ok(Self { path, bytes: bundle.program });
        }
        let path = super::grammar::checker().context("cannot find this program's file")?;
        let bytes = std::fs::metadata(&path).with_context(|| format!("{}", path.display()))?.len();
        Ok(Self { path, bytes })
    }

    /// Its bytes, and where the number of [`MARK`] lies in them.
    fn read(&self) -> anyhow::Result<(Vec<u8>, usize)> {
        let mut bytes = Vec::new();
        File::open(&self.path)?.take(self.bytes).read_to_end(&mut bytes)?;
        let mark = &black_box(&MARK)[..NUMBER];
        let mut places = memchr::memmem::find_iter(&bytes, mark);
        let (first, second) = (places.next(), places.next());
        match (first, second) {
            (Some(place), None) => Ok((bytes, place + NUMBER)),
            _ => bail!("{}: this program is packed, and cannot be bundled", self.path.display()),
        }
    }
}

fn write(
    path: &Path,
    program: &Program,
    model: String,
    sources: &[(String, PathBuf)],
) -> anyhow::Result<Bundle> {
    let mut file = File::create_new(path)?;
    let mut out = BufWriter::with_capacity(1 << 20, &mut file);
    let (bytes, mark) = program.read()?;
    out.write_all(&bytes)?;
    let mut at = bytes.len() as u64;
    let mut files = Vec::new();
    for (name, source) in sources {
        let start = at.next_multiple_of(ALIGN);
        std::io::copy(&mut std::io::repeat(0).take(start - at), &mut out)?;
        let (mut from, bytes) = reader(source)?;
        let mut hash = Sha256::new();
        copy(&mut from, bytes, |part| {
            hash.update(part);
            out.write_all(part)
        })
        .with_context(|| format!("{}", source.display()))?;
        at = start + bytes;
        files.push(Member { path: name.clone(), start, bytes, sha256: hex(&hash.finalize()) });
    }
    let bundle = Bundle { model, program: program.bytes, files };
    let tail = bundle.tail()?;
    out.write_all(&tail)?;
    out.flush()?;
    drop(out);
    file.seek(SeekFrom::Start(mark as u64))?;
    file.write_all(&(at + tail.len() as u64).to_le_bytes())?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(&program.path)?.permissions().mode();
        file.set_permissions(std::fs::Permissions::from_mode(mode & 0o777 | 0o100))?;
    }
    file.sync_all()?;
    Ok(bundle)
}

/// Gives out all `bytes` of a file, part by part.
fn copy(
    from: &mut impl Read,
    bytes: u64,
    mut to: impl FnMut(&[u8]) -> std::io::Result<()>,
) -> anyhow::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let read = from.read(&mut buffer)?;
        ensure!(read > 0, "it ended {left} bytes before its end: it was changed meanwhile");
        to(&buffer[..read])?;
        left = left.saturating_sub(read as u64);
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_command_is_for_run() {
        for (typed, wanted) in [
            ("b", "b chat"),
            ("b -v", "b -v chat"),
            ("b hi", "b run hi"),
            ("b -", "b run -"),
            ("b --max-tokens 4 hi", "b run --max-tokens 4 hi"),
            ("b -vv --verbose --json hi", "b -vv --verbose run --json hi"),
            ("b run", "b run"),
            ("b -- run", "b run -- run"),
            ("b run -- run", "b run -- run"),
            ("b -v serve --port 1", "b -v serve --port 1"),
            ("b --help", "b --help"),
            ("b -V", "b -V"),
            ("b help run", "b help run"),
            ("b ls", "b ls"),
            ("b start", "b run start"),
            ("b status", "b run status"),
        ] {
            let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
            assert_eq!(with_command(words(typed)), words(wanted), "{typed}");
        }
    }

    #[test]
    fn the_mark_has_room_for_a_number() {
        assert_eq!((MARK.len(), MARK[NUMBER..].len(), marked()), (40, 8, None));
        assert_eq!(&MARK[NUMBER..], [0; 8]);
        assert!(!is_one());
    }
}
