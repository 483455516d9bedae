//! `likewise migrate`: the tables of the record servers.

use crate::{
    Failure,
    config::Settings,
    wiring::{self, Place},
};

pub(crate) async fn run(settings: &Settings) -> Result<(), Failure> {
    for (shards, place) in wiring::record_places(&settings.records)? {
        match place {
            Place::Server(server) => {
                server.migrate().await?;
                println!("shards {shards}: the tables are of this program's version");
            }
            Place::File(_) => println!("shards {shards}: an embedded store makes its own tables"),
        }
    }
    Ok(())
}
