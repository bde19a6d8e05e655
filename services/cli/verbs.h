// One factory per verb; MakeVerbs puts them in order.
#pragma once

#include <memory>

#include "services/cli/verb.h"

namespace cogumi::cli {

std::unique_ptr<Verb> MakeRunVerb();
std::unique_ptr<Verb> MakeChatVerb();
std::unique_ptr<Verb> MakeServeVerb();
std::unique_ptr<Verb> MakeCheckVerb();
std::unique_ptr<Verb> MakeListVerb();
std::unique_ptr<Verb> MakeShowVerb();
std::unique_ptr<Verb> MakePsVerb();
std::unique_ptr<Verb> MakeStopVerb();
std::unique_ptr<Verb> MakeRouteExplainVerb();
std::unique_ptr<Verb> MakeAdapterLoadVerb();
std::unique_ptr<Verb> MakeAdapterListVerb();
std::unique_ptr<Verb> MakeAdapterShowVerb();
std::unique_ptr<Verb> MakeAdapterRemoveVerb();
std::unique_ptr<Verb> MakeTokenizeVerb();
std::unique_ptr<Verb> MakeBenchVerb();
std::unique_ptr<Verb> MakeDoctorVerb();
std::unique_ptr<Verb> MakeVersionVerb();

}  // namespace cogumi::cli
