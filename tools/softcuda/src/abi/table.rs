//! The whole interface in one table: every name that is exported, with its function.

use super::call::Export;
use super::{
    capture, capturing, code, context, copy, device, entry, event, fill, function, graph, host,
    launch, library, memory, module, nodes, occupancy, ordered, pointer, pool, primary, settings,
    stream, tensor, unsupported,
};

/// The parts of the table, file by file; the last holds what only answers NOT_SUPPORTED.
const PARTS: [&[Export]; 26] = [
    code::EXPORTS,
    device::EXPORTS,
    primary::EXPORTS,
    context::EXPORTS,
    settings::EXPORTS,
    memory::EXPORTS,
    host::EXPORTS,
    copy::EXPORTS,
    fill::EXPORTS,
    pool::EXPORTS,
    ordered::EXPORTS,
    pointer::EXPORTS,
    module::EXPORTS,
    library::EXPORTS,
    function::EXPORTS,
    launch::EXPORTS,
    occupancy::EXPORTS,
    stream::EXPORTS,
    event::EXPORTS,
    capture::EXPORTS,
    capturing::EXPORTS,
    graph::EXPORTS,
    nodes::EXPORTS,
    entry::EXPORTS,
    tensor::EXPORTS,
    unsupported::EXPORTS,
];

/// Every name with its function.
fn all() -> impl Iterator<Item = &'static Export> {
    PARTS.into_iter().flatten()
}

/// The function of a name.
pub(super) fn address(name: &str) -> Option<*const ()> {
    all().find(|(known, _)| *known == name).map(|(_, function)| *function)
}

/// Names of the interface, with whether more than NOT_SUPPORTED stands behind them.
pub(super) fn names() -> impl Iterator<Item = (&'static str, bool)> {
    let missing = unsupported::EXPORTS.as_ptr_range();
    all().map(move |row| (row.0, !missing.contains(&std::ptr::from_ref(row))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_name_is_in_the_table_twice() {
        let mut seen = BTreeSet::new();
        for (name, _) in all() {
            assert!(name.starts_with("cu"), "{name}");
            assert!(seen.insert(name), "{name} is in the table twice");
        }
    }

    #[test]
    fn what_is_not_supported_is_listed_in_order() {
        let names: Vec<_> = unsupported::EXPORTS.iter().map(|row| row.0).collect();
        let after = names.windows(2).find(|pair| pair[0] >= pair[1]);
        assert_eq!(after, None, "put these two in order");
    }

    #[test]
    fn names_tell_what_is_implemented() {
        let known: std::collections::BTreeMap<_, _> = names().collect();
        assert_eq!(known.get("cuLaunchKernel"), Some(&true));
        assert_eq!(known.get("cuTexRefCreate"), Some(&false));
    }
}
