//! `dormouse check`: what `run` and a reload would say to the files, before they have to.

mod doubts;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use humantime_serde::re::humantime::format_duration;
use serde::Serialize;

use super::exit::{Failure, Outcome, error_line, print, print_json, remark, short};
use crate::{
    access::{check_files, check_keys},
    acme,
    admin::Token,
    certs::{Certs, Pair},
    config::{Config, EngineConfig, FlyConfig, Listen, Swap},
    edge::{Entrances, TlsError},
    route::{Route, RouteError, RouteTable, load_dir},
};

/// Checks dormouse.toml, every route file and every certificate, without touching anything that runs.
///
/// Every error is told as FILE:LINE:COLUMN: what is wrong, with a hint, and the exit code is 2.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  dormouse check                          ./dormouse.toml and its routes
  dormouse check --config /etc/dormouse/dormouse.toml
  dormouse check --json | jq '.errors[]'
  dormouse check && dormouse reload")]
pub(super) struct Check {
    /// The edge's settings [default: ./dormouse.toml, or the defaults where there is no such file].
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
    /// What the name of an engine means: as with `run --engine`.
    #[arg(long, value_name = "NAME=KIND")]
    engine: Vec<Swap>,
    /// Print {ok, file, routes, engines, certificates, errors, warnings, notes} as JSON.
    #[arg(long)]
    json: bool,
}

/// `check --json`.
#[derive(Default, Serialize)]
struct Findings {
    ok: bool,
    /// The settings' file; `null` for the defaults.
    file: Option<String>,
    routes: Vec<String>,
    engines: Vec<String>,
    /// The names of each.
    certificates: Vec<Vec<String>>,
    errors: Vec<RouteError>,
    warnings: Vec<String>,
    /// What an engine does otherwise than a route says.
    notes: Vec<RouteError>,
}

/// The settings and the routes, checked.
pub(super) fn load(
    config: Option<&Path>,
    swaps: &[Swap],
) -> Result<(Config, RouteTable), Vec<RouteError>> {
    let config = Config::load_with(config, swaps)?;
    let mut errors = Vec::new();
    if let Some(file) = &config.admin.token_file
        && let Err(wrong) = Token::read(file)
    {
        let (message, hint) = (wrong.to_string(), "admin.token_file names it".to_owned());
        errors.push(RouteError { file: file.clone(), at: None, message, hint: Some(hint) });
    }
    errors.extend(check_keys(&config.links));
    match load_dir(&config.paths.routes, &config.engine_kinds()) {
        Ok(table) => {
            errors.extend(check_files(&table));
            if errors.is_empty() { Ok((config, table)) } else { Err(errors) }
        }
        Err(more) => Err(errors.into_iter().chain(more).collect()),
    }
}

/// All files: the certificates, too.
fn load_all(config: Option<&Path>, swaps: &[Swap]) -> Result<Files, Vec<RouteError>> {
    let (config, table) = load(config, swaps)?;
    let mut errors = Vec::new();
    if let Err(TlsError::ClientCa { file, wrong }) =
        Entrances::new(&config, &Arc::new(Certs::load([])))
    {
        errors.push(RouteError {
            file,
            at: None,
            message: wrong,
            hint: Some("it is a client_ca".into()),
        });
    }
    if let Some(Err(wrong)) = config.acme.as_ref().map(acme::check) {
        let file = config.file.clone().unwrap_or_default();
        errors.push(RouteError { file, at: None, message: format!("[acme]: {wrong}"), hint: None });
    }
    let certs = Certs::load(config.cert_folders());
    errors.extend(certs.errors());
    if errors.is_empty() { Ok(Files { config, table, certs }) } else { Err(errors) }
}

/// Files that have no error.
struct Files {
    config: Config,
    table: RouteTable,
    certs: Certs,
}

impl Check {
    pub(super) fn run(self) -> Outcome {
        let loaded = load_all(self.config.as_deref(), &self.engine);
        if self.json {
            return print_findings(loaded);
        }
        let files = loaded.map_err(|errors| {
            let mut failure = Failure::of_files(&errors);
            failure.text += &format!("\n{}", counted(errors.len(), "error"));
            failure
        })?;
        for warning in warnings(&files) {
            remark(&format!("warning: {warning}"));
        }
        for note in notes(&files.table) {
            remark(&format!("note: {}", error_line(&note)));
        }
        let Files { config, table, certs } = &files;
        let certificates = match certs.pairs().len() {
            0 => String::new(),
            count => format!(", {}", counted(count, "certificate")),
        };
        let file = config.file.as_deref().map_or("no file, the defaults".to_owned(), short);
        let names: Vec<_> = config.engines.keys().map(String::as_str).collect();
        print(&format!(
            "ok: {} of {}, engines {}{certificates} ({file})",
            counted(table.len(), "route"),
            short(&config.paths.routes),
            names.join(", "),
        ))
    }
}

/// All as data: errors are findings like others, and only the exit code tells.
fn print_findings(loaded: Result<Files, Vec<RouteError>>) -> Outcome {
    match loaded {
        Ok(files) => print_json(&Findings {
            ok: true,
            file: files.config.file.as_ref().map(|file| file.display().to_string()),
            routes: files.table.iter().map(|route| route.name.to_string()).collect(),
            engines: files.config.engines.keys().cloned().collect(),
            certificates: files.certs.pairs().iter().map(|pair| names(pair)).collect(),
            warnings: warnings(&files),
            notes: notes(&files.table),
            errors: Vec::new(),
        }),
        Err(errors) => {
            let data = serde_json::json!(Findings { errors, ..Findings::default() });
            Err(Failure { text: String::new(), data: Some(data), ..Failure::of_files(&[]) })
        }
    }
}

/// What is allowed, and perhaps not what was meant.
fn warnings(files: &Files) -> Vec<String> {
    let Files { config, table, certs } = files;
    let mut warnings = Vec::new();
    if table.is_empty() {
        let folder = short(&config.paths.routes);
        warnings.push(format!("{folder}: no routes: every request will get 404"));
    }
    warnings.extend(table.iter().filter_map(|route| flapping(route)));
    warnings.extend(config.engines.iter().filter_map(|(name, engine)| open_to_all(name, engine)));
    let Listen { https, trusted_proxies, .. } = &config.listen;
    if https.is_empty() && trusted_proxies.0.is_empty() {
        let to_nowhere = table.iter().filter(|route| route.recipe.client_tls.redirect);
        warnings.extend(to_nowhere.map(|route| {
            format!(
                "{}: tls.redirect, but nothing listens: listen.https is empty",
                short(&route.file)
            )
        }));
    }
    if !https.is_empty() && certs.pairs().is_empty() {
        let folder = short(&config.paths.certs);
        warnings.push(format!("{folder}: no certificate: every TLS handshake will be refused"));
    }
    for pair in certs.pairs() {
        if let Some(key) = &pair.exposed {
            warnings.push(format!("{}: others than its owner can read this key", short(key)));
        }
    }
    warnings.extend(doubts::all(config, table, certs));
    warnings.extend(
        certs
            .expiring()
            .iter()
            .map(|pair| format!("{}: it ends in {}", short(&pair.file), days(pair.days_left()))),
    );
    warnings
}

fn notes(table: &RouteTable) -> Vec<RouteError> {
    table.iter().flat_map(|route| route.notes.iter().cloned()).collect()
}

fn names(pair: &Pair) -> Vec<String> {
    pair.names.iter().map(ToString::to_string).collect()
}

fn days(left: i64) -> String {
    format!("{left} day{}", if left == 1 { "" } else { "s" })
}

fn open_to_all(name: &str, engine: &EngineConfig) -> Option<String> {
    let EngineConfig::Fly(FlyConfig { public: Some(public), .. }) = engine else { return None };
    Some(format!(
        "engines.{name}.fly.public: whoever knows {} reaches every machine there, past this edge and its \
         [access]: let the machines themselves ask for a secret",
        public.host
    ))
}

fn flapping(route: &Route) -> Option<String> {
    let min_awake = route.recipe.policy.min_awake;
    let first = route.recipe.policy.ladder.first().filter(|rung| rung.after < min_awake)?;
    Some(format!(
        "{}: idle.after is {}, but idle.min_awake keeps it awake for {} after each wake",
        short(&route.file),
        format_duration(first.after),
        format_duration(min_awake),
    ))
}

pub(super) fn counted(count: usize, word: &str) -> String {
    format!("{count} {word}{}", if count == 1 { "" } else { "s" })
}
