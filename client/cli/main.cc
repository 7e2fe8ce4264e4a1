// quantctl: quantizes a layer through a quantd server, and looks at what a server does.

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <functional>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "client/cli/dequantize.h"
#include "client/cli/inspect.h"
#include "client/cli/interrupt.h"
#include "client/cli/plan.h"
#include "client/cli/quantize.h"
#include "client/cli/terminal.h"
#include "client/cpp/client.h"
#include "compute/recipe/recipe.h"

namespace quantd::cli {
namespace {

constexpr int kFailed = 1;
constexpr int kUsage = 2;

constexpr const char* kExamples = R"(Examples:
  quantctl quantize --weights layer.safetensors --activations inputs.safetensors \
      --format mxfp4 --transform wush --out result
  quantctl dequantize --in result/result.safetensors --out result/dequantized.safetensors
  quantctl plan JOB --bits 3 --method watersic --commit --out planned
  quantctl --server gpu-box:7741 --token $TOKEN --tls jobs

Options may be written with - or _ between words. With --json, lists have one object a line.
Exit status: 0 success, 1 the server or the operation failed, 2 wrong usage.)";

constexpr const char* kQuantizeExamples = R"(Examples:
  # 4-bit floats with the data-aware transform, calibrated on captured layer inputs
  quantctl quantize --weights layer.safetensors --activations inputs.safetensors \
      --format nvfp4 --transform wush --out result
  # the same from a second moment E[x x^T] that was computed elsewhere
  quantctl quantize --weights layer.safetensors --second_moment moment.safetensors --tokens 20000 \
      --format int4 --group_size 64 --transform wush --solver conditional --out result
  # corrected for what the layers before it have done to its inputs: moments from files, or the
  # names of statistics that the server has already
  quantctl quantize --weights layer.safetensors --second_moment moment.safetensors \
      --second_moment_hat hat.safetensors --cross_moment cross.safetensors \
      --residual_moment layers.3.o_proj.residual --method watersic --rate_bits 3 --out result
  # no data needed
  quantctl quantize --weights model.safetensors --tensor model.layers.0.mlp.up_proj.weight \
      --format fp8 --out result)";

constexpr const char* kPlanExamples =
    R"(Measures candidates for every weight of an earlier job and shows which gets what, so that the
sum of the layers' relative output errors, weighted by their parameters, is least. Examples:
  # 3 bits a weight on average, any rate for each layer
  quantctl plan my-job --bits 3 --method watersic
  # number formats with the transforms of the job; quantize as planned
  quantctl plan my-job --bits 5 --formats mxfp4,int4,int8 --commit --out planned)";

// What the command line says.
struct Arguments {
  client::ConnectOptions server;
  Output output;
  QuantizeOptions quantize;
  PlanOptions plan;
  std::string job;
  std::string layer;
  std::string in;
  std::string out;
};

// "--scale-rule" reads as "--scale_rule".
std::vector<std::string> NormalizedArguments(int argc, char** argv) {
  std::vector<std::string> arguments(argv + 1, argv + argc);
  for (std::string& argument : arguments) {
    if (argument == "--") break;
    if (argument.rfind("--", 0) != 0) continue;
    const auto end = std::find(argument.begin(), argument.end(), '=');
    std::replace(argument.begin() + 2, end, '-', '_');
  }
  std::reverse(arguments.begin(), arguments.end());  // the order that CLI11 takes
  return arguments;
}

// An option whose value is one of the names that `parse` knows.
template <typename Value, typename Target>
CLI::Option* AddNamed(CLI::App* command, const std::string& option, Target* target,
                      absl::StatusOr<Value> (*parse)(absl::string_view), const std::string& help) {
  return command
      ->add_option_function<std::string>(
          option,
          [option, target, parse](std::string text) {
            std::replace(text.begin(), text.end(), '_', '-');
            const absl::StatusOr<Value> value = parse(text);
            if (!value.ok()) {
              throw CLI::ValidationError(option, std::string(value.status().message()));
            }
            *target = *value;
          },
          help)
      ->type_name("NAME");
}

void AddServerOptions(CLI::App* app, Arguments* arguments) {
  client::ConnectOptions& server = arguments->server;
  server.address = "127.0.0.1:7741";
  app->add_option("--server", server.address, "Address of the server")
      ->envname("QUANTD_SERVER")
      ->type_name("HOST:PORT")
      ->capture_default_str();
  app->add_option("--token", server.token, "Bearer token")
      ->envname("QUANTD_TOKEN")
      ->type_name("TOKEN");
  app->add_flag("--tls", server.tls, "Use TLS with the system's certificate authorities");
  app->add_option("--tls_ca", server.ca_file, "Use TLS with the certificate authorities of a file")
      ->check(CLI::ExistingFile)
      ->type_name("PEM");
  app->add_option("--tls_cert", server.certificate_file, "Client certificate for mutual TLS")
      ->check(CLI::ExistingFile)
      ->type_name("PEM");
  app->add_option("--tls_key", server.key_file, "Key of the client certificate")
      ->check(CLI::ExistingFile)
      ->type_name("PEM");
  app->add_option_function<double>(
         "--retry_for", [&server](double seconds) { server.retry_for = absl::Seconds(seconds); },
         "Seconds to keep trying while the server is away, or at a limit, in the middle of work "
         "(default 60)")
      ->check(CLI::NonNegativeNumber)
      ->type_name("SECONDS");
  app->add_flag("-q,--quiet", arguments->output.quiet, "Print errors only");
  app->add_flag("--json", arguments->output.json, "Print results as JSON");
}

void AddRecipeOptions(CLI::App* command, compute::Recipe* recipe) {
  const char* group = "Recipe";
  AddNamed(command, "--format", &recipe->format, compute::ParseFormat,
           "mxfp4, nvfp4, int2, int3, int4, int8 or fp8; watersic and higgs have their own")
      ->group(group);
  AddNamed(command, "--transform", &recipe->transform, compute::ParseTransform,
           "identity (default), hadamard, random, wus or wush")
      ->group(group);
  AddNamed(command, "--method", &recipe->method, compute::ParseMethod,
           "rtn (default), gptq, watersic or higgs")
      ->group(group);
  AddNamed(command, "--solver", &recipe->solver, compute::ParseSolver,
           "Of wus and wush: marginal (default) or conditional")
      ->group(group);
  AddNamed(command, "--scale_rule", &recipe->scale_rule, compute::ParseScaleRule,
           "How scales are chosen; the default and the choice depend on the format: ocp, noclip "
           "(mxfp4); amax, mse (nvfp4); absmax, compressed-tensors, gaussian-mse (int2 to int8)")
      ->group(group);
  AddNamed(command, "--granularity", &recipe->granularity, compute::ParseGranularity,
           "What shares a scale: group, row or block-128x128")
      ->group(group);
  command
      ->add_option("--group_size", recipe->group_size,
                   "Columns that share a scale (int2 to int8, higgs)")
      ->type_name("N")
      ->group(group);
  command
      ->add_option("--transform_block_size", recipe->transform_block_size,
                   "Columns of one transform block; the group size if not given")
      ->type_name("N")
      ->group(group);
  command
      ->add_option_function<double>(
          "--damping", [recipe](double value) { recipe->damping = value; },
          "Relative damping of the marginal solver; picked by measured error if not given. With "
          "watersic: of the second moment (default 1e-4)")
      ->type_name("X")
      ->group(group);
  command->add_option("--seed", recipe->seed, "Seed of the random transform")
      ->type_name("N")
      ->group(group);
  command
      ->add_option("--rate,--rate_bits", recipe->rate_bits,
                   "Bits a weight: watersic any, with everything that is stored; higgs 2, 3 or 4")
      ->type_name("BITS")
      ->group(group);
  command
      ->add_option("--grid_dimension", recipe->grid_dimension,
                   "Of higgs: values that one code stands for, 1 (default) or 2")
      ->type_name("P")
      ->group(group);
  command
      ->add_flag("--skip_rate_theory", recipe->skip_rate_theory,
                 "No waterfilling limit in the report of gptq and watersic: on wide layers its "
                 "eigenvalues take longer than the method")
      ->group(group);
}

void AddGptqOptions(CLI::App* command, compute::GptqOptions* gptq) {
  const char* group = "Recipe: gptq";
  AddNamed(command, "--order", &gptq->order, compute::ParseBlockOrder,
           "Blocks ascending (default) or descending")
      ->group(group);
  command->add_flag("--act_order", gptq->act_order, "Inputs of large second moment first")
      ->group(group);
  command
      ->add_option("--gptq_damping", gptq->damping,
                   "Damping relative to the mean diagonal of the second moment")
      ->type_name("X")
      ->group(group)
      ->capture_default_str();
  command
      ->add_flag("--allow_rtn_fallback", gptq->allow_rtn_fallback,
                 "Round to nearest where the second moment cannot be factored; an error if not "
                 "given")
      ->group(group);
  command
      ->add_flag("--asymmetric", gptq->asymmetric,
                 "GPTAQ: correct the drift of the inputs; needs --cross_moment and "
                 "--second_moment_hat")
      ->group(group);
}

void AddInputOptions(CLI::App* command, QuantizeOptions* options) {
  const char* group = "Input";
  command->add_option("--weights", options->weights, "The layer's weight, rows x columns")
      ->required()
      ->check(CLI::ExistingFile)
      ->type_name("SAFETENSORS")
      ->group(group);
  command
      ->add_option("--tensor", options->tensor,
                   "Name of the weight; `weight`, or the only tensor, if not given")
      ->type_name("NAME")
      ->group(group);
  auto* activations =
      command
          ->add_option("--activations", options->activations,
                       "The layer's inputs, tokens x columns (tensor `activations`)")
          ->check(CLI::ExistingFile)
          ->type_name("SAFETENSORS")
          ->group(group);
  auto* moment = command
                     ->add_option("--second_moment", options->second_moment,
                                  "E[x x^T], columns x columns (tensor `second_moment`)")
                     ->check(CLI::ExistingFile)
                     ->type_name("SAFETENSORS")
                     ->group(group)
                     ->excludes(activations);
  command->add_option("--activations_tensor", options->activations_tensor, "Its name")
      ->needs(activations)
      ->type_name("NAME")
      ->group(group);
  auto* weights =
      command
          ->add_option("--token_weights", options->token_weights,
                       "Weight of each token in the second moment, e.g. the attention that it gets "
                       "(tensor `token_weights`, one a token)")
          ->check(CLI::ExistingFile)
          ->needs(activations)
          ->type_name("SAFETENSORS")
          ->group(group);
  command->add_option("--token_weights_tensor", options->token_weights_tensor, "Its name")
      ->needs(weights)
      ->type_name("NAME")
      ->group(group);
  command->add_option("--second_moment_tensor", options->second_moment_tensor, "Its name")
      ->needs(moment)
      ->type_name("NAME")
      ->group(group);
  command->add_option("--tokens", options->tokens, "Tokens that the moments of files stand for")
      ->check(CLI::PositiveNumber)
      ->type_name("N")
      ->group(group)
      ->capture_default_str();
  command
      ->add_option("--statistic", options->statistic,
                   "Alone: calibrate on this sealed statistic of the server. With --activations "
                   "or --second_moment: keep the data under this name")
      ->type_name("NAME")
      ->group(group);
  command
      ->add_option_function<int64_t>(
          "--sample_rows", [options](int64_t rows) { options->sample_rows = rows; },
          "Tokens kept for measuring activation errors")
      ->needs(activations)
      ->type_name("N")
      ->group(group);
  command
      ->add_flag("--block_diagonal", options->block_diagonal,
                 "Accumulate only the diagonal blocks of the second moment: less memory, enough "
                 "for the marginal solver")
      ->needs(activations)
      ->group(group);
  command
      ->add_flag("--shared_memory", options->shared_memory,
                 "Hand the activations over in shared memory: to a server on this host that runs "
                 "with --shared_memory and as this user")
      ->needs(activations)
      ->group(group);
}

// Moments of drift, for methods that read them.
void AddDriftOptions(CLI::App* command, QuantizeOptions* options) {
  const char* group = "Drift: safetensors files (a tensor of the option's name), or statistics";
  const auto add = [&](const char* name, std::string* to, const char* help) {
    return command->add_option(name, *to, help)->type_name("FILE|NAME")->group(group);
  };
  auto* hat = add("--second_moment_hat", &options->second_moment_hat,
                  "E[xhat xhat^T], columns x columns, xhat being the layer's inputs where the "
                  "layers before it are quantized; for watersic, and gptq with --asymmetric");
  auto* cross = add("--cross_moment", &options->cross_moment, "E[x xhat^T], columns x columns");
  hat->needs(cross);
  cross->needs(hat);
  add("--residual_moment", &options->residual_moment,
      "E[(r - rhat) xhat^T], rows x columns, r being what the residual stream holds beside the "
      "layer's outputs; for watersic");
}

// What the options mean together.
void CheckQuantize(CLI::App& command, QuantizeOptions& options) {
  const auto implied = compute::ImpliedFormat(options.recipe.method);
  if (command.count("--format") == 0) {
    if (!implied.has_value()) throw CLI::RequiredError("--format");
    options.recipe.format = *implied;
  }
  const bool calibrated =
      !options.activations.empty() || !options.second_moment.empty() || !options.statistic.empty();
  const absl::StatusOr<compute::Recipe> recipe = compute::ResolveRecipe(options.recipe);
  if (!recipe.ok()) {
    throw CLI::ValidationError(std::string(recipe.status().message()));
  }
  if (compute::NeedsSecondMoment(*recipe) && !calibrated) {
    throw CLI::ValidationError(std::string(compute::NameOf(recipe->transform)) + " with " +
                               std::string(compute::NameOf(recipe->method)) +
                               " needs calibration data: give --activations, --second_moment or "
                               "--statistic");
  }
}

using Command = std::function<absl::Status()>;

// A command that takes a connection.
void AddClientCommand(CLI::App* command, const Arguments* arguments, Command* chosen,
                      std::function<absl::Status(client::Client&)> run) {
  command->callback([arguments, chosen, run = std::move(run)] {
    *chosen = [arguments, run]() -> absl::Status {
      auto client = client::Client::Connect(arguments->server);
      if (!client.ok()) return client.status();
      return run(**client);
    };
  });
}

void AddQuantize(CLI::App* app, Arguments* arguments, Command* chosen) {
  QuantizeOptions* options = &arguments->quantize;
  CLI::App* command = app->add_subcommand("quantize", "Quantize one layer");
  AddInputOptions(command, options);
  AddDriftOptions(command, options);
  AddRecipeOptions(command, &options->recipe);
  AddGptqOptions(command, &options->recipe.gptq);
  command
      ->add_option("--out", options->out,
                   "Folder for result.safetensors and report.json; made if missing")
      ->required()
      ->type_name("DIR");
  command->add_option("--job", options->job_id, "Id of the job; the server picks one if not given")
      ->type_name("ID");
  AddNamed(command, "--priority", &options->priority, client::ParsePriority,
           "Among your own jobs: low, normal (default) or high");
  command
      ->add_option_function<double>(
          "--deadline", [options](double seconds) { options->deadline = absl::Seconds(seconds); },
          "Give up when the job has not ended after so many seconds")
      ->check(CLI::PositiveNumber)
      ->type_name("SECONDS");
  auto* keep = command->add_flag_callback(
      "--keep", [options] { options->keep = true; },
      "Keep the job and its statistic on the server (default)");
  command
      ->add_flag_callback(
          "--delete", [options] { options->keep = false; },
          "Delete them once the results are saved; a statistic with a name of its own stays")
      ->excludes(keep);
  command->footer(kQuantizeExamples);
  command->callback([arguments, command, options, chosen] {
    CheckQuantize(*command, *options);
    *chosen = [arguments, options] {
      return Quantize(arguments->server, *options, arguments->output);
    };
  });
}

void AddDequantize(CLI::App* app, Arguments* arguments, Command* chosen) {
  CLI::App* command =
      app->add_subcommand("dequantize", "Decode a result into the weights it stands for");
  command->add_option("--in", arguments->in, "result.safetensors")
      ->required()
      ->check(CLI::ExistingFile)
      ->type_name("SAFETENSORS");
  command->add_option("--out", arguments->out, "File to write: tensor `weight`, F32")
      ->required()
      ->type_name("SAFETENSORS");
  command->callback([arguments, chosen] {
    *chosen = [arguments] { return Dequantize(arguments->in, arguments->out); };
  });
}

// What the options mean together.
void CheckPlan(const CLI::App& command, PlanOptions& options) {
  client::CandidateOptions& candidates = options.candidates;
  const bool by_rate = candidates.method == compute::Method::kWaterSic ||
                       candidates.method == compute::Method::kHiggs;
  if (by_rate && !candidates.formats.empty()) {
    throw CLI::ValidationError("--formats: watersic and higgs have their own; give --rates");
  }
  if (!by_rate && command.count("--rates") > 0) {
    throw CLI::ValidationError("--rates needs --method watersic or --method higgs");
  }
  if (!by_rate && candidates.formats.empty()) {
    candidates.formats = {compute::Format::kMxfp4, compute::Format::kNvfp4, compute::Format::kInt4,
                          compute::Format::kInt8};
  }
}

void AddPlan(CLI::App* app, Arguments* arguments, Command* chosen) {
  PlanOptions* options = &arguments->plan;
  CLI::App* command =
      app->add_subcommand("plan", "Spread a budget of bits over the layers of a job");
  command->add_option("JOB", options->job, "Id or full name of a job whose weights are uploaded")
      ->required();
  command->add_option("--bits", options->bits, "Bits a weight, on average, everything included")
      ->required()
      ->check(CLI::PositiveNumber)
      ->type_name("BITS");
  AddNamed(command, "--method", &options->candidates.method, compute::ParseMethod,
           "watersic (any rate), higgs, gptq or rtn; the layers' own if not given");
  AddNamed(command, "--transform", &options->candidates.transform, compute::ParseTransform,
           "With --formats: in place of the layers' own");
  command
      ->add_option_function<std::vector<std::string>>(
          "--formats",
          [options](const std::vector<std::string>& names) {
            for (std::string name : names) {
              std::replace(name.begin(), name.end(), '_', '-');
              const auto format = compute::ParseFormat(name);
              if (!format.ok()) {
                throw CLI::ValidationError("--formats", std::string(format.status().message()));
              }
              options->candidates.formats.push_back(*format);
            }
          },
          "Number formats to choose from (default mxfp4,nvfp4,int4,int8)")
      ->delimiter(',')
      ->type_name("NAMES");
  command
      ->add_option("--rates", options->candidates.rates,
                   "Rates to measure with watersic (default: around --bits) or higgs (2,3,4)")
      ->delimiter(',')
      ->check(CLI::PositiveNumber)
      ->type_name("BITS");
  auto* commit = command->add_flag("--commit", options->commit, "Quantize as planned; needs --out");
  auto* out = command
                  ->add_option("--out", options->out,
                               "With --commit: folder for LAYER.safetensors, LAYER.report.json and "
                               "plan.json; made if missing")
                  ->needs(commit)
                  ->type_name("DIR");
  commit->needs(out);
  command->add_flag("--keep", options->keep, "Keep the job that measured the candidates");
  command->footer(kPlanExamples);
  command->callback([arguments, command, options, chosen] {
    CheckPlan(*command, *options);
    *chosen = [arguments, options] { return Plan(arguments->server, *options, arguments->output); };
  });
}

void AddInspection(CLI::App* app, Arguments* arguments, Command* chosen) {
  const auto add = [&](const std::string& name, const std::string& help, auto run) {
    CLI::App* command = app->add_subcommand(name, help);
    AddClientCommand(command, arguments, chosen, run);
    return command;
  };
  const auto with_job = [&](CLI::App* command) {
    command->add_option("JOB", arguments->job, "Id or full name of the job")->required();
    return command;
  };
  add("info", "What the server is and can do",
      [=](client::Client& client) { return ShowInfo(client, arguments->output); });
  add("jobs", "List the jobs, newest first",
      [=](client::Client& client) { return ShowJobs(client, arguments->output); });
  add("statistics", "List the calibration statistics",
      [=](client::Client& client) { return ShowStatistics(client, arguments->output); });
  add("tenants", "List every tenant's quotas and usage (needs the role admin)",
      [=](client::Client& client) { return ShowTenants(client, arguments->output); });
  with_job(add("watch", "Follow a job until it has ended", [=](client::Client& client) {
    return WatchJob(client, arguments->job, arguments->output);
  }));
  with_job(add("cancel", "Stop a job", [=](client::Client& client) {
    return CancelJob(client, arguments->job, arguments->output);
  }));
  with_job(add("delete", "Delete a job with its results", [=](client::Client& client) {
    return DeleteJob(client, arguments->job, arguments->output);
  }));
  with_job(add("report", "Show the error reports of a job",
               [=](client::Client& client) {
                 return ShowReports(client, arguments->job, arguments->layer, arguments->output);
               }))
      ->add_option("--layer", arguments->layer, "Only this layer")
      ->type_name("ID");
}

int Main(int argc, char** argv) {
  HandleInterrupts();
  Arguments arguments;
  Command chosen;
  CLI::App app("Quantizes the layers of language models on a quantd server", "quantctl");
  app.set_version_flag("--version", QUANTD_VERSION);
  app.require_subcommand(1);
  app.fallthrough();  // --server and the like may stand behind the command, too
  app.footer(kExamples);
  AddServerOptions(&app, &arguments);
  AddQuantize(&app, &arguments, &chosen);
  AddDequantize(&app, &arguments, &chosen);
  AddPlan(&app, &arguments, &chosen);
  AddInspection(&app, &arguments, &chosen);
  try {
    app.parse(NormalizedArguments(argc, argv));
  } catch (const CLI::ParseError& error) {
    std::ostringstream message;
    if (app.exit(error, std::cout, message) == 0) return 0;
    std::fprintf(stderr, "%s", Printable(message.str()).c_str());
    return kUsage;
  }
  const absl::Status status = chosen();
  if (status.ok()) return 0;
  std::fprintf(stderr, "quantctl: %s: %s\n", absl::StatusCodeToString(status.code()).c_str(),
               Printable(status.message()).c_str());
  if (absl::IsUnauthenticated(status)) {
    std::fprintf(stderr, "quantctl: give a token with --token or QUANTD_TOKEN\n");
  }
  return kFailed;
}

}  // namespace
}  // namespace quantd::cli

int main(int argc, char** argv) { return quantd::cli::Main(argc, argv); }
