//! Options of a command that are whole numbers: pairs of a name and a number, in any order.

use anyhow::{Context, Result, bail};

/// The value of each `known` option: that of `arguments`, or else its default.
pub(crate) fn numbers<const N: usize>(
    arguments: &[&str],
    known: [(&str, u64); N],
) -> Result<[u64; N]> {
    let mut values = known.map(|(_, default)| default);
    for pair in arguments.chunks(2) {
        let &[name, value] = pair else {
            bail!("{} needs a number", pair.join(" "));
        };
        let Some(at) = known.iter().position(|(option, _)| *option == name) else {
            let options = known.map(|(option, _)| option).join(" and ");
            bail!("{name} is unknown; there are {options}");
        };
        values[at] = value
            .parse()
            .with_context(|| format!("{name} takes a number, not {value:?}"))?;
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_come_in_any_order_and_nothing_else_does() {
        let read = |arguments: &[&str]| numbers(arguments, [("--count", 500), ("--seed", 7)]);
        assert_eq!(read(&[]).expect("defaults"), [500, 7]);
        let both = read(&["--seed", "3", "--count", "20"]);
        assert_eq!(both.expect("both"), [20, 3]);
        for wrong in [&["--seed"][..], &["--seed", "x"], &["--task", "1"]] {
            read(wrong).expect_err("refused");
        }
    }
}
