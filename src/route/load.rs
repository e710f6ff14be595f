//! A folder of route files becomes one table, or a list of everything that is wrong with them.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Clash, Engines, HostPattern, Route, RouteTable, check, host,
    recipe::Recipes,
    source::{Position, RouteError, salvage},
};

/// No route needs more; what is larger is something else.
const FILE_MAX: u64 = 1024 * 1024;
/// More errors would not be read by anybody.
const ERRORS_MAX: usize = 1000;

/// What the good files of a folder say, and what is wrong with the others.
#[derive(Debug)]
pub struct Loaded {
    /// The routes of the good files. The hosts of the others are closed.
    pub table: RouteTable,
    /// What is wrong with the others.
    pub errors: Vec<RouteError>,
}

/// Reads every `*.toml` of `dir`. All of them, or none: one bad file fails the whole.
///
/// Hidden files and those of other kinds are passed over. An empty folder is an empty table.
pub fn load_dir(dir: &Path, engines: &Engines) -> Result<RouteTable, Vec<RouteError>> {
    let Loaded { table, errors } = load(dir, engines)?;
    if errors.is_empty() { Ok(table) } else { Err(errors) }
}

/// The same, without the files that are wrong, or that `check` finds wrong in a table of them. Fails
/// where the folder cannot be read.
pub fn load_good(
    dir: &Path,
    engines: &Engines,
    check: impl Fn(&RouteTable) -> Vec<RouteError>,
) -> Result<Loaded, Vec<RouteError>> {
    let Loaded { table, mut errors } = load(dir, engines)?;
    let more = check(&table);
    if more.is_empty() {
        return Ok(Loaded { table, errors });
    }
    errors.extend(more);
    let alone = |route: &Arc<Route>| RouteTable::new([Route::clone(route)]);
    let is_bad = |route: &&Arc<Route>| alone(route).is_ok_and(|table| !check(&table).is_empty());
    let bad: Vec<_> = table.iter().filter(is_bad).map(|route| route.name.clone()).collect();
    let table = table.closing(&bad, table.closed().to_vec());
    Ok(Loaded { table, errors })
}

fn load(dir: &Path, engines: &Engines) -> Result<Loaded, Vec<RouteError>> {
    let files = route_files(dir).map_err(|error| vec![unreadable_dir(dir, &error)])?;
    let mut routes = Vec::with_capacity(files.len());
    let mut hosts_at = HashMap::with_capacity(files.len());
    let mut recipes = Recipes::default();
    let (mut errors, mut closed) = (Vec::new(), Vec::new());
    for file in files {
        match load_file(&file, engines) {
            Ok(Some((mut route, host_at))) => {
                recipes.share(&mut route.recipe);
                hosts_at.insert(route.name.clone(), host_at);
                routes.push(route);
            }
            Ok(None) => {}
            Err(wrong) => {
                errors.extend(wrong);
                closed.extend(host_of(&file));
            }
        }
    }
    let (table, clashes) = RouteTable::with_clashes(routes);
    errors.extend(clashes.iter().map(|clash| same_host(clash, &hosts_at)));
    if errors.is_empty() {
        return Ok(Loaded { table, errors });
    }
    errors.truncate(ERRORS_MAX);
    // Which of the two is meant is for the operator to say.
    let twice: Vec<_> = clashes.iter().map(|clash| clash.first.name.clone()).collect();
    Ok(Loaded { table: table.closing(&twice, closed), errors })
}

/// The host of a file that is wrong, where it can be made out.
fn host_of(file: &Path) -> Option<HostPattern> {
    let text = read(file).ok()??;
    HostPattern::parse(&salvage(&text, "host")?).ok()
}

/// Whether a file of this name is a route. Editors' temporary files are not.
pub fn is_route_file(name: &str) -> bool {
    name.ends_with(".toml") && !name.starts_with(['.', '#'])
}

fn route_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if is_route_file(&entry.file_name().to_string_lossy()) {
            files.push(entry.path());
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// `None` for what is no file any more, or never was one.
fn load_file(file: &Path, engines: &Engines) -> Result<Option<(Route, Position)>, Vec<RouteError>> {
    let Some(text) = read(file).map_err(|error| vec![error])? else { return Ok(None) };
    let name = file.file_stem().unwrap_or_default().to_string_lossy();
    if !host::is_name(&name) {
        let wrong = format!("`{name}` is no name of a route");
        let hint = "name the file with a-z, 0-9 and `-`, at most 63, no `-` at the ends";
        return Err(vec![RouteError::of_file(file, wrong).with_hint(hint)]);
    }
    check::parse(&name, file, &text, engines).map(Some)
}

/// The file's text; `None` if it is gone, as an editor's may be, or is a folder.
pub(crate) fn read(file: &Path) -> Result<Option<String>, RouteError> {
    let read = read_bytes(file, FILE_MAX).map_err(|wrong| RouteError::of_file(file, wrong))?;
    let Some(bytes) = read else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let text = String::from_utf8_lossy(&error.as_bytes()[..valid]).into_owned();
        RouteError {
            at: Some(Position::of(&text, text.len())),
            ..RouteError::of_file(file, "not UTF-8").with_hint("save the file as UTF-8")
        }
    })
}

/// What is in a file of at most `max` bytes, or what is wrong with it; `None` if it is gone, or is
/// a folder.
pub(super) fn read_bytes(file: &Path, max: u64) -> Result<Option<Vec<u8>>, String> {
    let wrong = |error: io::Error| format!("cannot be read: {error}");
    let kind = match fs::metadata(file) {
        Ok(metadata) => metadata.file_type(),
        // Gone between the listing and now; a symlink to nowhere is still there, and wrong.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !file.is_symlink() => {
            return Ok(None);
        }
        Err(error) => return Err(wrong(error)),
    };
    if kind.is_dir() {
        return Ok(None);
    }
    if !kind.is_file() {
        // To open a pipe would wait for somebody to write.
        return Err("not a regular file".to_owned());
    }
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(wrong)?;
    opened.take(max + 1).read_to_end(&mut bytes).map_err(wrong)?;
    if bytes.len() as u64 > max {
        let most = if max < 1024 * 1024 { (max / 1024, "KiB") } else { (max / 1024 / 1024, "MiB") };
        return Err(format!("larger than {} {}", most.0, most.1));
    }
    Ok(Some(bytes))
}

fn same_host(clash: &Clash, hosts_at: &HashMap<Arc<str>, Position>) -> RouteError {
    let Clash { first, second, .. } = clash;
    let wrong = format!("the same host as {}: `{}`", first.file.display(), second.host);
    let hint = "a host belongs to one route; the captures' names make no difference";
    RouteError {
        at: hosts_at.get(&second.name).copied(),
        ..RouteError::of_file(&second.file, wrong).with_hint(hint)
    }
}

fn unreadable_dir(dir: &Path, error: &io::Error) -> RouteError {
    let wrong = RouteError::of_file(dir, format!("cannot read the folder of routes: {error}"));
    wrong.with_hint("create it, or set paths.routes in dormouse.toml to where the *.toml files are")
}
