//! `{name}` in a route's strings. Knows text and values, not where either comes from.

use std::fmt::Write as _;

/// What is wrong with a template, as a sentence, and what to do about it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Flaw {
    pub(crate) message: String,
    pub(crate) hint: String,
}

/// What may stand in a template.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Names<'a> {
    /// The captures' names …
    pub(crate) captures: &'a [String],
    /// … and names that stay as they are written, for somebody else to fill in.
    pub(crate) reserved: &'a [&'a str],
}

/// Fills in the captures' `values` (in the order of their names). `{{` and `}}` are braces.
pub(crate) fn render(text: &str, names: Names<'_>, values: &[&str]) -> Result<String, Flaw> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(brace) = rest.find(['{', '}']) {
        filled.push_str(&rest[..brace]);
        let open = rest[brace..].starts_with('{');
        let behind = &rest[brace + 1..];
        if let Some(behind) = behind.strip_prefix(if open { '{' } else { '}' }) {
            filled.push(if open { '{' } else { '}' });
            rest = behind;
            continue;
        }
        let name = behind.split_once('}').filter(|_| open).map(|(name, _)| name);
        let name = name.ok_or_else(|| lone_brace(open))?;
        if let Some(index) = names.captures.iter().position(|capture| capture == name) {
            filled.push_str(values.get(index).copied().unwrap_or_default());
        } else if names.reserved.contains(&name) {
            // Writing to a String cannot fail.
            let _ = write!(filled, "{{{name}}}");
        } else {
            return Err(unknown(name, names));
        }
        rest = &behind[name.len() + 1..];
    }
    filled.push_str(rest);
    Ok(filled)
}

/// Whether a capture stands in a template that was checked.
pub(crate) fn has_capture(text: &str) -> bool {
    text.replace("{{", "").contains('{')
}

fn lone_brace(open: bool) -> Flaw {
    let (brace, other) = if open { ("{", "}") } else { ("}", "{") };
    Flaw {
        message: format!("`{brace}` without its `{other}`"),
        hint: format!("write `{brace}{brace}` for the character itself"),
    }
}

fn unknown(name: &str, names: Names<'_>) -> Flaw {
    let known = names.captures.iter().map(String::as_str).chain(names.reserved.iter().copied());
    let known: Vec<_> = known.map(|name| format!("`{{{name}}}`")).collect();
    let known = match &known[..] {
        [] => "the host has no captures".to_owned(),
        known => format!("known here: {}", known.join(", ")),
    };
    Flaw {
        message: format!("unknown `{{{name}}}`"),
        hint: format!("{known}; write `{{{{` for the brace itself"),
    }
}
