//! Runs scenarios by name, from seeds. Driven by `cargo xtask torture`.

fn main() {
    let name = std::env::args().nth(1).unwrap_or_default();
    let seed = std::env::args().nth(2).and_then(|seed| seed.parse().ok()).unwrap_or(1);
    let Some(scenario) = flotilla_tests::named(&name) else { return };
    println!("{:#?}", flotilla_tests::scenario::run(scenario, seed));
}
