// Puts the lines a person types together into messages and commands.
#pragma once

#include <optional>
#include <string>

namespace cogumi::cli {

// A text between two """ may have several lines; a trailing backslash joins the next line; a line
// that begins with '/' is a command.
class ChatInput {
 public:
  // The complete message or command, or nothing while more lines belong to it.
  std::optional<std::string> Add(const std::string& line);
  // True while a message of several lines is open.
  bool pending() const { return quoted_ || continued_; }
  // Whether what Add gave last was a command.
  bool is_command() const { return is_command_; }

 private:
  std::string text_;
  bool quoted_ = false;
  bool continued_ = false;
  bool is_command_ = false;
};

}  // namespace cogumi::cli
