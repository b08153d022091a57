//! `medfleet pause`, `resume` and `pauses`: work that operators hold back, whatever replica leads. Needs an operator's token.

use clap::builder::NonEmptyStringValueParser;
use medfleet_core::Class;
use medfleet_proto::v1::{self, Pause};
use medfleet_queue::wire::class_to_wire;

use super::with_client;
use crate::choices::one_of;
use crate::client::ServerArgs;
use crate::exit::{CommandResult, Exit, Fault};
use crate::show;

/// Flags of `pause` and `resume`.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// Whose work [default: every tenant's, of the class that --class names]
    #[arg(long, value_name = "TENANT", value_parser = NonEmptyStringValueParser::new())]
    tenant: Option<String>,
    /// Of which class [default: every class, of the tenant that --tenant names]
    #[arg(long, value_name = "CLASS", value_parser = one_of(Class::ALL, Class::as_str))]
    class: Option<Class>,
    #[command(flatten)]
    server: ServerArgs,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Flags of `pauses`.
#[derive(clap::Args, Debug)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// One JSON object per pause and line on stdout
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Tenant and class, one of them at least.
    fn scope(&self) -> Result<(String, v1::Class), Fault> {
        if self.tenant.is_none() && self.class.is_none() {
            return Err(Fault::usage(anyhow::anyhow!(
                "name what: --tenant TENANT, --class CLASS, or both"
            )));
        }
        let class = self.class.map_or(v1::Class::Unspecified, class_to_wire);
        Ok((self.tenant.clone().unwrap_or_default(), class))
    }
}

pub(crate) fn pause(args: Args) -> CommandResult {
    let (tenant, class) = args.scope()?;
    with_client(&args.server, async |client| {
        let pause = client.pause_work(&tenant, class).await?;
        show_one(&pause, args.json)?;
        Ok(Exit::Done)
    })
}

pub(crate) fn resume(args: Args) -> CommandResult {
    let (tenant, class) = args.scope()?;
    with_client(&args.server, async |client| {
        client.resume_work(&tenant, class).await?;
        if args.json {
            show::print_json(&show::resumed_json(&tenant, class))?;
            return Ok(Exit::Done);
        }
        // To resume what is not paused is no error, also where a name was mistyped: so what is left is said.
        for pause in &client.pauses().await? {
            eprintln!("medfleet: still paused: {}", show::pause_table_row(pause));
        }
        Ok(Exit::Done)
    })
}

pub(crate) fn list(args: ListArgs) -> CommandResult {
    with_client(&args.server, async |client| {
        let pauses = client.pauses().await?;
        if !args.json {
            show::print(&show::pause_table_head())?;
        }
        for pause in &pauses {
            show_one(pause, args.json)?;
        }
        Ok(Exit::Done)
    })
}

fn show_one(pause: &Pause, json: bool) -> std::io::Result<()> {
    match json {
        true => show::print_json(&show::pause_json(pause)),
        false => show::print(&show::pause_table_row(pause)),
    }
}
