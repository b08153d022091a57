//! Who counts as being in the stages.

use super::*;
use crate::config::sample;

fn edge(in_flight_max: u32) -> Scope {
    let bound = format!("in_flight_max={in_flight_max}");
    let settings = [
        "hub=http://127.0.0.1:1",
        "tokens_file=hub-tokens.toml",
        "travels=tokens",
        bound.as_str(),
    ];
    Scope::Site(Arc::new(sample::of(&settings)))
}

#[test]
fn at_an_edge_what_waits_for_the_hub_is_in_no_stage_and_is_bounded() {
    let tenant = TenantId::new("st-mary").expect("a name");
    let check = |scope: &Scope, encoded, expected: (u64, bool)| {
        let open = Open {
            all: 10,
            encoded,
            at_hub: 3,
        };
        let (counted, behind) = scope.standing(HashMap::from([(tenant.clone(), open)]));
        let found = (counted[&tenant], behind.contains(&tenant));
        assert_eq!(found, expected, "{encoded} are encoded");
    };
    let site = edge(4);
    check(&site, 0, (7, false));
    check(&site, 3, (4, false));
    check(&site, 4, (3, true));
    check(&site, 7, (0, true));
    // A hub's are all in its stages, and wait for nobody.
    check(&Scope::Fleet, 7, (10, false));
}
