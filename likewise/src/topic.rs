//! `likewise topic`: the topics of a Kafka log.

use clap::{Args, Subcommand};
use likewise_schema::PartitionCount;
use likewise_storage::log::{KafkaUrl, check_topic, create_topic};

use crate::{Failure, config::Settings};

#[derive(Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Make the topic that --log names, and one for dead letters beside it. --partitions sets how many partitions the
    /// log has for ever: 16, or 64 for production.
    Create {
        /// Copies of each partition; 3 or more also ask that two have an event before it is acknowledged.
        #[arg(long, value_name = "N", default_value = "1")]
        replication: u16,
        /// Succeed if the topics are there already, and change nothing.
        #[arg(long)]
        if_missing: bool,
    },
    /// Say which settings of the topics endanger data. Exits with 1 if there are any.
    Check,
}

pub(crate) async fn run(settings: &Settings, options: &Options) -> Result<(), Failure> {
    let url = KafkaUrl::parse(&settings.log)?;
    match options.what {
        What::Create { replication, if_missing } => {
            if if_missing && let Ok(findings) = check_topic(&url).await {
                println!("the topics are there; {} of their settings endanger data", findings.len());
                return Ok(());
            }
            let partitions: PartitionCount = settings.partitions.unwrap_or_default();
            create_topic(&url, partitions, replication).await?;
            println!("made the log with {} partitions, and {} for dead letters", partitions.get(), url.dead_topic());
            Ok(())
        }
        What::Check => {
            let found = check_topic(&url).await?;
            found.iter().for_each(|sentence| println!("{sentence}"));
            match found.len() {
                0 => {
                    println!("nothing endangers data");
                    Ok(())
                }
                number => Err(format!("{number} of the topics' settings endanger data").into()),
            }
        }
    }
}
