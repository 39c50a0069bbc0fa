//! The checker against histories from the literature, an oracle too simple to be wrong, and its own mutations.

mod agreement;
mod generate;
mod oracle;
mod scale;
