#include "server/service/server_service.h"

#include <utility>

#include "compute/pipeline/pipeline.h"
#include "quantd/v1/server.grpc.pb.h"
#include "server/service/messages.h"

namespace quantd::server {
namespace {

class ServerService final : public v1::Server::CallbackService {
 public:
  ServerService(const CallEnvironment& environment, std::string version,
                std::vector<compute::Backend*> backends, const LimitsConfig& limits,
                JobEngine& engine, const TenantSources& tenants)
      : environment_(environment),
        backends_(std::move(backends)),
        engine_(engine),
        tenants_(tenants) {
    info_.set_version(std::move(version));
    AddCapabilities();
    v1::Limits* l = info_.mutable_limits();
    l->set_max_message_bytes(kMaxMessageBytes);
    l->set_max_chunk_bytes(kMaxChunkBytes);
    l->set_max_dimension(limits.max_dimension);
    l->set_max_layers_per_job(limits.max_layers_per_job);
    l->set_max_jobs_per_tenant(limits.max_jobs_per_tenant);
    l->set_max_streams_per_tenant(limits.max_streams_per_tenant);
    l->set_stream_credit_bytes(limits.stream_credit_bytes);
    l->set_max_inline_bytes(limits.max_inline_bytes);
  }

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context,
                                          const v1::GetServerInfoRequest* request,
                                          v1::ServerInfo* response) override {
    return RunUnary(environment_, context, "quantd.v1.Server/GetServerInfo", request, response,
                    [=, this](const std::string& tenant) {
                      *response = info_;
                      response->set_tenant(tenant);
                      AddDevices(*response);
                      return absl::OkStatus();
                    });
  }

  grpc::ServerUnaryReactor* ListTenants(grpc::CallbackServerContext* context,
                                        const v1::ListTenantsRequest* request,
                                        v1::ListTenantsResponse* response) override {
    return RunUnary(environment_, context, "quantd.v1.Server/ListTenants", request, response,
                    [=, this](const std::string&) -> absl::Status {
                      auto list = server::ListTenants(tenants_);
                      if (!list.ok()) return list.status();
                      *response = *std::move(list);
                      return absl::OkStatus();
                    });
  }

 private:
  static constexpr double kAnyRate = 4.0;  // fits every method that has a rate

  // What the first device can do, asked rather than assumed.
  void AddCapabilities() {
    const auto supported = [&](compute::Recipe recipe) {
      const auto resolved = compute::ResolveRecipe(recipe);
      return resolved.ok() && compute::CheckRunnable(*backends_.front(), *resolved).ok();
    };
    for (int i = v1::Format_MIN + 1; i <= v1::Format_MAX; ++i) {
      v1::Recipe message;
      message.set_format(static_cast<v1::Format>(i));
      if (message.format() == v1::ENTROPY_CODED) message.set_method(v1::WATERSIC);
      if (message.format() == v1::GAUSSIAN_GRID) message.set_method(v1::HIGGS);
      if (message.method() != v1::METHOD_UNSPECIFIED) message.set_rate_bits(kAnyRate);
      const auto recipe = FromProto("", message);
      if (recipe.ok() && supported(*recipe)) info_.add_formats(message.format());
    }
    for (int i = v1::Transform_MIN + 1; i <= v1::Transform_MAX; ++i) {
      v1::Recipe message;
      message.set_format(v1::MXFP4);
      message.set_transform(static_cast<v1::Transform>(i));
      const auto recipe = FromProto("", message);
      if (recipe.ok() && supported(*recipe)) info_.add_transforms(message.transform());
    }
    for (int i = v1::Method_MIN + 1; i <= v1::Method_MAX; ++i) {
      v1::Recipe message;
      message.set_method(static_cast<v1::Method>(i));
      if (message.method() == v1::RTN || message.method() == v1::GPTQ) {
        message.set_format(v1::MXFP4);
      } else {
        message.set_rate_bits(kAnyRate);
      }
      const auto recipe = FromProto("", message);
      if (recipe.ok() && supported(*recipe)) info_.add_methods(message.method());
    }
  }

  void AddDevices(v1::ServerInfo& info) const {
    const std::vector<int> running = engine_.RunningBySlot();
    for (const compute::Backend* backend : backends_) {
      const compute::DeviceInfo description = backend->Describe();
      v1::Device* device = info.add_devices();
      device->set_name(description.name);
      device->set_description(description.description);
      device->set_memory_bytes(description.memory_bytes);
      device->set_uuid(description.uuid);
      if (const auto utilisation = backend->Activity().utilisation; utilisation.has_value()) {
        device->set_utilisation(*utilisation);
      }
      int layers = 0;
      for (size_t slot = 0; slot < running.size(); ++slot) {
        if (engine_.slots()[slot].device == description.name) layers += running[slot];
      }
      device->set_running_layers(layers);
    }
  }

  const CallEnvironment& environment_;
  const std::vector<compute::Backend*> backends_;
  JobEngine& engine_;
  const TenantSources tenants_;
  v1::ServerInfo info_;
};

}  // namespace

std::unique_ptr<grpc::Service> NewServerService(const CallEnvironment& environment,
                                                std::string version,
                                                std::vector<compute::Backend*> backends,
                                                const LimitsConfig& limits, JobEngine& engine,
                                                const TenantSources& tenants) {
  return std::make_unique<ServerService>(environment, std::move(version), std::move(backends),
                                         limits, engine, tenants);
}

}  // namespace quantd::server
