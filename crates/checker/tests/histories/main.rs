//! Tests the checker with histories from the literature, against a brute-force oracle, and with corrupted
//! histories.

mod agreement;
mod corruption;
mod generate;
mod literature;
mod oracle;
mod scale;
