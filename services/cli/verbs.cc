#include "services/cli/verbs.h"

namespace cogumi::cli {

std::vector<std::unique_ptr<Verb>> MakeVerbs() {
  std::vector<std::unique_ptr<Verb>> verbs;
  for (const auto make :
       {MakeServeVerb, MakeRunVerb, MakeChatVerb, MakeListVerb, MakeShowVerb, MakePsVerb,
        MakeStopVerb, MakeRouteExplainVerb, MakeAdapterLoadVerb, MakeAdapterListVerb,
        MakeAdapterShowVerb, MakeAdapterRemoveVerb, MakeTokenizeVerb, MakeBenchVerb, MakeDoctorVerb,
        MakeCheckVerb, MakeVersionVerb}) {
    verbs.push_back(make());
  }
  return verbs;
}

}  // namespace cogumi::cli
