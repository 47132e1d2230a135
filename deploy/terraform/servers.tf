# One server keeps everything in its file. Three have a member of an etcd cluster each, which speak TLS with each other
# and with the servers; the first one makes the certificates for that, and the key that seals the secrets of all.

locals {
  is_cluster     = var.server_count > 1
  others         = { for name, address in local.servers : name => address if name != local.first }
  server_list    = join(" ", [for name, address in local.servers : "${name}=${address}"])
  first_input    = local.hosts_input[local.first]
  server_package = { for name in keys(local.servers) : name => terraform_data.package[name].id }
}

resource "terraform_data" "authority" {
  count            = local.is_cluster ? 1 : 0
  input            = local.first_input
  triggers_replace = [local.server_list, terraform_data.host[local.first].id]
  depends_on       = [terraform_data.package]

  connection {
    host        = self.input.address
    user        = self.input.user
    port        = self.input.port
    private_key = file(self.input.key_file)
    host_key    = self.input.host_key
  }

  provisioner "remote-exec" {
    inline = [format(self.input.run, file("${path.module}/scripts/authority.sh"), "authority ${local.server_list}")]
  }
}

# Private keys go from host to host through this machine, and are kept in no file here.
resource "terraform_data" "secrets" {
  for_each         = local.is_cluster ? local.others : {}
  triggers_replace = [terraform_data.authority[0].id, terraform_data.host[each.key].id]

  provisioner "local-exec" {
    command = "sh -eu '${path.module}/scripts/hand-over.sh'"
    environment = {
      FROM     = local.first_input.address
      FROM_KEY = coalesce(local.first_input.host_key, "-")
      TO       = each.value
      TO_KEY   = coalesce(local.hosts_input[each.key].host_key, "-")
      NAME     = each.key
      SSH_USER = var.ssh_user
      SSH_PORT = var.ssh_port
      KEY_FILE = local.first_input.key_file
    }
  }
}

resource "terraform_data" "etcd" {
  for_each         = local.is_cluster ? local.servers : {}
  input            = local.hosts_input[each.key]
  triggers_replace = [terraform_data.authority[0].id, terraform_data.host[each.key].id]
  depends_on       = [terraform_data.secrets]

  connection {
    host        = self.input.address
    user        = self.input.user
    port        = self.input.port
    private_key = file(self.input.key_file)
    host_key    = self.input.host_key
  }

  provisioner "remote-exec" {
    inline = [format(self.input.run, file("${path.module}/scripts/etcd.sh"), "etcd ${each.key} ${each.value} ${local.server_list}")]
  }
}

# The first server makes the mesh; the others find it in etcd.
resource "terraform_data" "first_server" {
  input            = local.first_input
  triggers_replace = [terraform_data.host[local.first].id, local.server_list]
  depends_on       = [terraform_data.package, terraform_data.etcd]

  connection {
    host        = self.input.address
    user        = self.input.user
    port        = self.input.port
    private_key = file(self.input.key_file)
    host_key    = self.input.host_key
  }

  provisioner "remote-exec" {
    inline = [format(self.input.run, file("${path.module}/scripts/server.sh"), "server ${self.input.name}")]
  }
}

resource "terraform_data" "server" {
  for_each         = local.others
  input            = local.hosts_input[each.key]
  triggers_replace = [terraform_data.first_server.id, terraform_data.host[each.key].id]

  connection {
    host        = self.input.address
    user        = self.input.user
    port        = self.input.port
    private_key = file(self.input.key_file)
    host_key    = self.input.host_key
  }

  provisioner "remote-exec" {
    inline = [format(self.input.run, file("${path.module}/scripts/server.sh"), "server ${self.input.name}")]
  }
}
