//! What a reload costs: every file of a folder read, checked and put into one table.

use divan::Bencher;
use dormouse::route::{RouteTable, load_dir};

use crate::{instant::folder, routes};

const FILES: usize = 10_000;

/// From the files, which the page cache holds, to the table.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn load_10_000_files(bencher: Bencher<'_, '_>) {
    let (folder, engines) = (folder(FILES, false), routes::engines());
    bencher.bench_local(|| load_dir(folder.path(), &engines).expect("they are right"));
}

/// The table alone.
#[divan::bench(sample_count = 10, sample_size = 1)]
fn table_of_10_000(bencher: Bencher<'_, '_>) {
    let folder = folder(FILES, false);
    let table = load_dir(folder.path(), &routes::engines()).expect("they are right");
    let routes = || table.iter().map(|route| (**route).clone()).collect::<Vec<_>>();
    bencher.with_inputs(routes).bench_local_values(|routes| RouteTable::new(routes).is_ok());
}
