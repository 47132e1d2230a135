# Every other host joins with a token of its own, which goes from the first server to the host and is kept nowhere. One
# that is taken away gets no new connections first, then ends those that are open, and is forgotten last.
resource "terraform_data" "member" {
  for_each         = local.members
  input            = merge(local.hosts_input[each.key], { server = local.first_input.address, server_key = local.first_input.host_key })
  triggers_replace = [terraform_data.first_server.id, terraform_data.host[each.key].id]
  depends_on       = [terraform_data.package, terraform_data.server, terraform_data.fortune]

  provisioner "local-exec" {
    command = "sh -eu '${path.module}/scripts/join.sh'"
    environment = {
      FROM     = self.input.server
      FROM_KEY = coalesce(self.input.server_key, "-")
      TO       = self.input.address
      TO_KEY   = coalesce(self.input.host_key, "-")
      NAME     = self.input.name
      SSH_USER = self.input.user
      SSH_PORT = self.input.port
      KEY_FILE = self.input.key_file
    }
  }

  provisioner "remote-exec" {
    when   = destroy
    inline = [format(self.input.run, "murmesh host drain \"$0\"", self.input.name)]

    connection {
      host        = self.input.server
      user        = self.input.user
      port        = self.input.port
      private_key = file(self.input.key_file)
      host_key    = self.input.server_key
      timeout     = "1m"
    }
  }

  provisioner "remote-exec" {
    when   = destroy
    inline = [format(self.input.run, "murmesh down", self.input.name)]

    connection {
      host        = self.input.address
      user        = self.input.user
      port        = self.input.port
      private_key = file(self.input.key_file)
      host_key    = self.input.host_key
      timeout     = "1m"
    }
  }

  provisioner "remote-exec" {
    when   = destroy
    inline = [format(self.input.run, "murmesh host undrain \"$0\"; murmesh host remove \"$0\"", self.input.name)]

    connection {
      host        = self.input.server
      user        = self.input.user
      port        = self.input.port
      private_key = file(self.input.key_file)
      host_key    = self.input.server_key
      timeout     = "1m"
    }
  }
}
